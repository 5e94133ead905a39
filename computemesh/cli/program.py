"""`mesh program`: make a JAX function a program that the mesh runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, ProfileOption, connect

app = typer.Typer(help="Turn JAX functions into programs and look at them.", no_args_is_help=True)
ShapesOption = Annotated[
    str, typer.Option("--input-shapes", help='Types of the arguments of one item, e.g. "float32[128,10] int32[]".')
]
MemoryOption = Annotated[int, typer.Option("--memory-bytes", min=2**20, help="Memory that the task will allow.")]


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
    from computemesh.client.programs import MEDIA_TYPE, export
    from computemesh.trust.errors import InvalidArgument

    try:
        data, program = export(source, input_shapes, exact=exact, precision=precision, memory_bytes=memory_bytes)
    except InvalidArgument as error:
        field = {"exact": "--exact", "input_shapes": "--input-shapes"}.get(next(iter(dict(error.violations)), ""))
        if field is None:
            raise
        raise typer.BadParameter(error.message, param_hint=field) from None
    if to is not None:
        to.write_bytes(data)
        output.say(f"{to}: {len(data):,} bytes")
    else:
        called = name or source.rpartition(":")[2]
        with connect(profile) as client:
            client.put_artifact(data, name=f"{called}.program", media_type=MEDIA_TYPE)
    _show(program.digest, dict(program.document or {}), program.payload())


@app.command()
def inspect(
    program: Annotated[Path, typer.Argument(help="A program artifact.", exists=True, dir_okay=False)],
    memory_bytes: MemoryOption = 2**30,
    as_json: JsonOption = False,
) -> None:
    """Say what a program takes and gives, or why workers refuse it. Parses it in a process of its own."""
    from computemesh.client.programs import admit

    _show(hashlib.sha256(program.read_bytes()).hexdigest(), admit(program, memory_bytes), None)


def _show(digest: str, document: dict[str, Any], payload: dict[str, Any] | None) -> None:
    rows = {
        "program": digest, "inputs": ", ".join(document["inputs"]), "outputs": ", ".join(document["outputs"]),
        "platforms": ", ".join(document["platforms"]), "memory": f"{document['memory_bytes']:,} bytes",
        "integers only": "yes" if document["integer"] else "no", "operations": ", ".join(document["operations"]),
    }  # fmt: skip
    text = output.pairs(rows)
    if payload is not None:
        text += f"\n\npayload  {json.dumps({**payload, 'inputs': '<SHA-256 of an .npz>'})}"
    output.emit({"program": digest, **document, "payload": payload}, text)
