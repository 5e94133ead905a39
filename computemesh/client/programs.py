"""A customer's own JAX function as an artifact that workers run: exported, admitted, stored."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from computemesh.sandbox.arrays import ArrayType, parse_type
from computemesh.trust.errors import InvalidArgument

if TYPE_CHECKING:
    from computemesh.client.aio import AsyncClient

MEDIA_TYPE = "application/vnd.computemesh.program"
ADMISSION_S = 120
MEMORY_BYTES = 2**30
DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Program:
    """An exported function: its artifact's SHA-256, and the types of the arguments and outputs of one item.

    `exact`: integers only, compared byte by byte; else results are compared within `tolerance` (docs/task-types.md).
    `document` is all that admission found.
    """

    digest: str
    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    exact: bool = False
    tolerance: float = DEFAULT_TOLERANCE
    document: Mapping[str, Any] | None = None

    @classmethod
    async def push(
        cls, client: AsyncClient, function: Callable[..., Any] | str, input_shapes: str, *, exact: bool = False,
        precision: str = "highest", tolerance: float = DEFAULT_TOLERANCE, memory_bytes: int = MEMORY_BYTES,
        name: str = "",
    ) -> Program:  # fmt: skip
        """Export, have it admitted as a worker would, and store it. Raises InvalidArgument, JobFailed."""
        data, program = await asyncio.to_thread(
            export, function, input_shapes, exact=exact, precision=precision, tolerance=tolerance,
            memory_bytes=memory_bytes)  # fmt: skip
        called = name or (function.rpartition(":")[2] if isinstance(function, str) else function.__name__)
        await client.put_artifact(data, name=f"{called}.program", media_type=MEDIA_TYPE)
        return program

    def payload(self) -> dict[str, Any]:
        """The fields of a `program` task that follow from the program."""
        how: dict[str, Any] = {"exact": True} if self.exact else {"tolerance": self.tolerance}
        return {"program": self.digest, "outputs": [kind.text for kind in self.outputs], **how}


def export(
    function: Callable[..., Any] | str, input_shapes: str, *, exact: bool = False, precision: str = "highest",
    tolerance: float = DEFAULT_TOLERANCE, memory_bytes: int = MEMORY_BYTES,
) -> tuple[bytes, Program]:  # fmt: skip
    """The artifact of a function (or "FILE.py:NAME") of arrays such as "float32[128,10] int32[]", and what it is.

    Raises InvalidArgument where it cannot be exported or its results would not be `exact`, JobFailed with what a worker
    would refuse.
    """
    from computemesh.sandbox.exporting import export_program, load_function

    called = load_function(function) if isinstance(function, str) else function
    data = export_program(called, types_of(input_shapes), exact=exact, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program")
        path.write_bytes(data)
        document = admit(path, memory_bytes)
    if exact and (not document["integer"] or document["order"]):
        order = ", ".join(document["order"])
        why = f"has {order}, where devices choose an order" if document["integer"] else "computes with floats"
        raise _refuse("exact", f"the function {why}, so its results are not exact")
    inputs, outputs = (tuple(parse_type(text) for text in document[name]) for name in ("inputs", "outputs"))
    return data, Program(hashlib.sha256(data).hexdigest(), inputs, outputs, exact, tolerance, document)


def types_of(text: str) -> Sequence[ArrayType]:
    """The array types in a text, separated by blanks, commas or semicolons. Raises InvalidArgument."""
    try:
        return [parse_type(part) for part in text.replace(";", " ").replace("],", "] ").split()]
    except ValueError as error:
        raise _refuse("input_shapes", str(error)) from None


def admit(program: Path, memory_bytes: int = MEMORY_BYTES) -> dict[str, Any]:
    """What a worker would say of a program: its document. Raises JobFailed naming what is refused."""
    from computemesh.sandbox.frames import Kind
    from computemesh.sandbox.process import Limits
    from computemesh.workloads.program import HOST_BYTES, MAX_ITEM_BYTES, request_of, run_child

    request = request_of(program, ADMISSION_S, memory_bytes, MAX_ITEM_BYTES)
    child = run_child("cpu")
    try:
        child.start()
        frames = list(child.ask(request, Limits(ADMISSION_S, memory_bytes + HOST_BYTES["cpu"], 0)))
    finally:
        child.close()
    return dict(json.loads(next(data for kind, data in frames if kind is Kind.DOCUMENT)))


def _refuse(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(problem, violations=[(field, problem)])
