"""`client.map`: one function over many inputs as one task; how inputs travel, and how values come back."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say, and spans several calls)

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from computemesh.client.programs import Program
from computemesh.client.progress import track
from computemesh.sandbox.exposed import Exposed
from computemesh.trust.errors import InvalidArgument

if TYPE_CHECKING:
    from computemesh.client.aio import AsyncClient
    from computemesh.client.handles import AsyncResult

Mapped = str | Exposed[Any, Any] | Program
MAX_INLINE = 1_000
MAX_INLINE_BYTES = 256 * 1024
"""Inputs beyond either travel as an artifact: an order and its receipt carry the payload along."""


async def run(
    client: AsyncClient, function: Mapped, inputs: Sequence[Any], reward: str | None, max_cost: str | None,
    timeout: float | None, progress: bool | None, payload: dict[str, Any],
) -> list[Any]:  # fmt: skip
    """See `AsyncClient.map`."""
    if not inputs:
        return []
    if isinstance(function, Program):
        kind, own = "program", await _program_payload(client, function, inputs)
    else:
        kind, own = "function", await _function_payload(client, function, inputs)
    whole = {**own, **payload}
    if reward is None and max_cost is None:
        reward = (await client.quote(kind, whole)).price
    handle = await client.submit(kind, whole, reward, max_cost=max_cost)
    await track(handle, timeout, progress)
    result = await handle.result(timeout)
    return await (_program_values if isinstance(function, Program) else _function_values)(result, function)


async def _function_payload(client: AsyncClient, function: str | Exposed[Any, Any], inputs: Sequence[Any]) -> Any:
    from computemesh.sandbox.functions import canonical
    from computemesh.workloads.function import MAX_ITEM_BYTES

    plain = [item.model_dump(mode="json") if hasattr(item, "model_dump") else item for item in inputs]
    for at, item in enumerate(plain):
        if not isinstance(item, dict):
            raise _refuse(f"inputs[{at}]", f"is a {type(item).__name__}, not a pydantic model or a dict")
    lines = [canonical(item) for item in plain]
    named = {"function_name": function if isinstance(function, str) else function.name}
    small = len(lines) <= MAX_INLINE and sum(map(len, lines)) <= MAX_INLINE_BYTES
    if small and max(map(len, lines)) <= MAX_ITEM_BYTES:
        return {**named, "items": plain}
    stored = await client.put_artifact(b"\n".join(lines) + b"\n", name="inputs.jsonl", media_type="application/jsonl")
    return {**named, "inputs": stored.digest, "count": len(lines)}


async def _function_values(result: AsyncResult, function: Mapped) -> list[Any]:
    values: list[Any] = await result.json()
    return [function.gives.model_validate(value) for value in values] if isinstance(function, Exposed) else values


async def _program_payload(client: AsyncClient, program: Program, inputs: Sequence[Any]) -> dict[str, Any]:
    import numpy as np

    rows = [item if isinstance(item, tuple) else (item,) for item in inputs]
    columns: dict[str, Any] = {}
    for number, kind in enumerate(program.inputs):
        column = []
        for at, row in enumerate(rows):
            if len(row) != len(program.inputs):
                raise _refuse(f"inputs[{at}]", f"has {len(row)} arrays, the program takes {len(program.inputs)}")
            array = np.asarray(row[number])
            if array.shape != kind.shape or not np.can_cast(array.dtype, kind.dtype, "same_kind"):
                raise _refuse(f"inputs[{at}]", f"array {number} is {array.dtype}{list(array.shape)}, not {kind.text}")
            column.append(array.astype(kind.dtype))
        columns[f"arg{number}"] = np.stack(column)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **columns)
    stored = await client.put_artifact(file.getvalue(), name="inputs.npz", media_type="application/x-npz")
    return {**program.payload(), "inputs": stored.digest, "map": True, "items": len(rows)}


async def _program_values(result: AsyncResult, program: Mapped) -> list[Any]:
    arrays = await result.arrays()
    outputs = [arrays[f"out{number}"] for number in range(len(arrays))]
    return [*outputs[0]] if len(outputs) == 1 else [*zip(*outputs, strict=True)]


def _refuse(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {problem}", violations=[(field, problem)])
