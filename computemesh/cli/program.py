"""`mesh program`: make a JAX function a program that the mesh runs."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect

if TYPE_CHECKING:
    from computemesh.sandbox.arrays import ArrayType

app = typer.Typer(help="Turn JAX functions into programs and look at them.", no_args_is_help=True)
MEDIA_TYPE = "application/vnd.computemesh.program"
ADMISSION_S = 120
ShapesOption = Annotated[
    str, typer.Option("--input-shapes", help='Types of the arguments of one item, e.g. "float32[128,10] int32[]".')
]
MemoryOption = Annotated[int, typer.Option("--memory-bytes", min=2**20, help="Memory that the task will allow.")]


def _types(text: str) -> list[ArrayType]:
    from computemesh.sandbox.arrays import parse_type

    parts = text.replace(";", " ").replace("],", "] ").split()
    try:
        return [parse_type(part) for part in parts]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--input-shapes") from None


def admit(program: Path, memory_bytes: int) -> dict[str, Any]:
    """What a worker would say of a program: its document. Raises JobFailed naming what is refused."""
    import json

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


@app.command()
def push(
    source: Annotated[str, typer.Argument(metavar="FILE.py:FUNCTION", show_default=False)],
    input_shapes: ShapesOption,
    exact: Annotated[
        bool, typer.Option("--exact", help="Integers only: results are compared byte by byte on every device.")
    ] = False,
    to: Annotated[Path | None, typer.Option("-o", "--output", help="Write the artifact here, do not store it.")] = None,
    name: Annotated[str, typer.Option("--name", help="What to call it; the function's name if empty.")] = "",
    precision: Annotated[
        str, typer.Option(help="Of matrix products that leave it open: highest, or default (TF32 on GPUs).")
    ] = "highest",
    memory_bytes: MemoryOption = 2**30,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a function for CPU and CUDA, check that workers will admit it, and store it as an artifact.

    The artifact is StableHLO: no Python travels. Large arrays that the function closes over travel with it.
    """
    from computemesh.sandbox.exporting import export_program, load_function

    data = export_program(load_function(source), _types(input_shapes), exact=exact, precision=precision)
    name = name or source.rpartition(":")[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program")
        path.write_bytes(data)
        document = admit(path, memory_bytes)
    if exact and (not document["integer"] or document["order"]):
        order = ", ".join(document["order"])
        why = f"has {order}, where devices choose an order" if document["integer"] else "computes with floats"
        raise typer.BadParameter(f"the function {why}, so its results are not exact", param_hint="--exact")
    digest = hashlib.sha256(data).hexdigest()
    if to is not None:
        to.write_bytes(data)
        output.say(f"{to}: {len(data):,} bytes")
    else:
        with connect(profile) as client:
            client.put_artifact(data, name=f"{name}.program", media_type=MEDIA_TYPE)
    payload = {"program": digest, "outputs": document["outputs"], **({"exact": True} if exact else {"tolerance": 1e-3})}
    _show(digest, document, payload)


@app.command()
def inspect(
    program: Annotated[Path, typer.Argument(help="A program artifact.", exists=True, dir_okay=False)],
    memory_bytes: MemoryOption = 2**30,
    as_json: JsonOption = False,
) -> None:
    """Say what a program takes and gives, or why workers refuse it. Parses it in a process of its own."""
    _show(hashlib.sha256(program.read_bytes()).hexdigest(), admit(program, memory_bytes), None)


def _show(digest: str, document: dict[str, Any], payload: dict[str, Any] | None) -> None:
    rows = {
        "program": digest, "inputs": ", ".join(document["inputs"]), "outputs": ", ".join(document["outputs"]),
        "platforms": ", ".join(document["platforms"]), "memory": f"{document['memory_bytes']:,} bytes",
        "integers only": "yes" if document["integer"] else "no", "operations": ", ".join(document["operations"]),
    }  # fmt: skip
    text = output.pairs(rows)
    if payload is not None:
        import json

        text += f"\n\npayload  {json.dumps({**payload, 'inputs': '<SHA-256 of an .npz>'})}"
    output.emit({"program": digest, **document, "payload": payload}, text)
