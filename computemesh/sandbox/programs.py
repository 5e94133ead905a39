"""The child that runs customers' programs: `python -m computemesh.sandbox.programs FD PLATFORM`.

`jax.export` is not a security boundary: crafted bytes crash its parser, and a custom call runs what the library has.
So parsing, examining, compiling and running all happen here, in a process without keys, without network where the
system lets it, with limits, that nobody misses. It never uses the persistent compile cache.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from computemesh.sandbox.arrays import DTYPES, MAX_ARRAYS, ArrayType, unpack_program
from computemesh.sandbox.child import Link, Refused, confine, leave_network, limit_memory, limit_processor, mapped_bytes
from computemesh.sandbox.frames import Kind

COMPILER_BYTES = 2 * 2**30  # what compiling may map beyond the program's own memory
MAX_PROGRAM_BYTES = 256 * 2**20


class Program:
    """One program: parsed and examined, then compiled when first run."""

    def __init__(self, link: Link, path: Path, platform: str, exact: bool) -> None:
        from computemesh.sandbox.admission import examine

        link.phase("parsing")
        if (size := path.stat().st_size) > MAX_PROGRAM_BYTES:
            raise Refused("TOO_LARGE", f"the program has {size:,} bytes; at most {MAX_PROGRAM_BYTES:,} are taken")
        try:
            body = unpack_program(path.read_bytes())
        except ValueError as error:
            raise Refused("UNREADABLE", str(error)) from None
        try:
            self.exported = _deserialize(body)
            module = _module(self.exported)
            link.phase("examining")
            _check_frame(self.exported)
            self.inputs = _signature("argument", self.exported.in_avals)
            self.outputs = _signature("output", self.exported.out_avals)
            self.contents = examine(module)
            _check_results(module, self.outputs)
            _check_platform(self, platform, exact)
        except (Refused, MemoryError):
            raise
        except Exception as error:  # damaged bytes make every kind of error in JAX's reader
            raise Refused("UNREADABLE", f"the program cannot be parsed: {type(error).__name__}: {error}") from None
        self.compiled: Any = None
        self.memory_bytes = 0

    def compile(self, link: Link) -> None:
        """Compile for this process's device and learn how much memory a run takes."""
        import jax

        link.phase("compiling")
        specs = [jax.ShapeDtypeStruct(kind.shape, kind.dtype) for kind in self.inputs]  # type: ignore[no-untyped-call]
        try:
            self.compiled = jax.jit(self.exported.call).lower(*specs).compile()
        except Exception as error:
            raise _device_failure(error, "cannot be compiled") from None
        found = self.compiled.memory_analysis()
        if found is None:
            raise Refused("MEMORY", "the compiler does not say how much memory the program takes")
        self.memory_bytes = int(
            found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
            + found.generated_code_size_in_bytes
        )  # fmt: skip

    def run(self, arguments: list[Any]) -> bytes:
        """The outputs of one item, one after the other."""
        import jax
        import numpy as np

        try:
            leaves = jax.tree_util.tree_leaves(self.compiled(*arguments))
            arrays = [np.asarray(leaf) for leaf in leaves]
        except Exception as error:
            raise _device_failure(error, "failed") from None
        for array, kind in zip(arrays, self.outputs, strict=True):
            if array.dtype.name != kind.dtype or array.shape != kind.shape:
                text = f"an output is {array.dtype.name}{list(array.shape)}, not {kind.text} as the export says"
                raise Refused("REFUSED", text)
        return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def _deserialize(data: bytes) -> Any:
    from jax import export

    return export.deserialize(bytearray(data))


def _module(exported: Any) -> Any:
    """The MLIR module of an export, verified."""
    from jax._src.interpreters.mlir import make_ir_context
    from jax.extend.mlir.dialects import stablehlo

    context = make_ir_context()
    module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
    module.operation.verify()
    return module


def _check_frame(exported: Any) -> None:
    """What the export says about itself around the module."""
    effects = [*exported.ordered_effects, *exported.unordered_effects]
    if effects:
        raise Refused("REFUSED", f"the program has effects: {', '.join(str(one)[:60] for one in effects[:5])}")
    if exported.nr_devices != 1:
        raise Refused("REFUSED", f"the program is for {exported.nr_devices} devices; it must be for one")
    if not _is_flat(exported.in_tree, len(exported.in_avals)):
        raise Refused("REFUSED", "the program's arguments must be arrays by position, not dictionaries or tuples")


def _is_flat(tree: Any, count: int) -> bool:
    import jax

    return bool(tree == jax.tree_util.tree_structure((tuple(range(count)), {})))


def _signature(what: str, avals: Any) -> tuple[ArrayType, ...]:
    if len(avals) > MAX_ARRAYS:
        raise Refused("REFUSED", f"the program has {len(avals)} {what}s; at most {MAX_ARRAYS} are taken")
    found = []
    for i, aval in enumerate(avals):
        if str(aval.dtype) not in DTYPES or not all(isinstance(extent, int) for extent in aval.shape):
            text = f"{what} {i} is {aval.str_short()[:60]}; it must have a static shape and be of {', '.join(DTYPES)}"
            raise Refused("REFUSED", text)
        found.append(ArrayType(str(aval.dtype), tuple(aval.shape)))
    return tuple(found)


def _check_results(module: Any, outputs: tuple[ArrayType, ...]) -> None:
    """Sizes are bounded by what the export says of itself, so its module has to keep that."""
    mains = [op for op in module.body.operations if str(op.attributes["sym_name"]) == '"main"']
    found = [tuple(kind.shape) for kind in mains[0].attributes["function_type"].value.results]
    if found != [kind.shape for kind in outputs]:
        raise Refused("REFUSED", f"the program returns {len(found)} array(s) of other shapes than its export says")


def _check_platform(program: Program, platform: str, exact: bool) -> None:
    platforms, contents = program.exported.platforms, program.contents
    if not exact:
        if platform not in platforms:
            named = ", ".join(platforms)[:60]
            raise Refused("REFUSED", f"the program was exported for {named}, not for {platform}", again=True)
        return
    if not contents.integer:
        raise Refused("REFUSED", "the task says exact, and the program computes with floats or complex numbers")
    if contents.order:
        named = ", ".join(contents.order[:5])
        raise Refused("REFUSED", f"the task says exact, and {named} here depends on an order that devices choose")
    # A program for several platforms may ask which one it runs on. An exact one is the same everywhere.
    if tuple(platforms) != ("cpu",):
        text = f"the task says exact, and the program was exported for {', '.join(platforms)[:60]}"
        raise Refused("REFUSED", f"{text}; exact programs are exported once (mesh program push --exact)")


def _device_failure(error: Exception, what: str) -> Refused:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return Refused("MEMORY", f"the program {what}: the device's memory is full: {text}", again=True)
    return Refused("FAILED", f"the program {what}: {text}")


def answer(link: Link, program: Program, request: dict[str, Any]) -> None:
    """Check the program against the task, then send each item's outputs; `items` are [first, after) ranges."""
    from computemesh.sandbox.inputs import Inputs

    declared, items = request["outputs"], request["items"]
    if declared is not None and declared != [kind.text for kind in program.outputs]:
        real = ", ".join(kind.text for kind in program.outputs)[:300]
        raise Refused("OUTPUT", f"the task declares outputs {', '.join(declared)[:300]}; the program's are {real}")
    size = sum(kind.bytes for kind in program.outputs)
    if size > request["output_bytes"]:
        most = request["output_bytes"]
        raise Refused("OUTPUT", f"the outputs of one item have {size:,} bytes; at most {most:,} are taken")
    if program.compiled is None:
        program.compile(link)
    limit = request["memory_bytes"]
    if program.memory_bytes > limit:
        taken = f"{program.memory_bytes:,} bytes"
        raise Refused("MEMORY", f"the program takes {taken} of memory; the task allows {limit:,}")
    link.document({
        "inputs": [kind.text for kind in program.inputs], "outputs": [kind.text for kind in program.outputs],
        "integer": program.contents.integer, "order": list(program.contents.order),
        "operations": list(program.contents.operations), "memory_bytes": program.memory_bytes,
        "platforms": list(program.exported.platforms),
    })  # fmt: skip
    if not items:
        return
    link.phase("reading its inputs")
    inputs = Inputs(Path(request["inputs"]) if request["inputs"] else None, program.inputs, request["mapped_items"])
    try:
        for index in (index for first, after in items for index in range(first, after)):
            arguments = inputs.item(index)
            link.phase("running")
            link.send(Kind.OUTPUT, program.run(arguments))
    finally:
        inputs.close()


def serve(link: Link, platform: str) -> None:
    """Answer requests about one program until the parent is gone."""
    try:
        import jax

        jax.local_devices()
    except Exception as error:
        link.fail(Refused("DEVICE", f"no {platform} device: {type(error).__name__}: {error}", again=True))
        return
    fresh = mapped_bytes()
    link.send(Kind.READY)
    program: Program | None = None
    while True:
        request = link.request()
        limit_processor(request["processor_s"])
        if platform == "cpu":  # a CUDA process maps terabytes of addresses; the parent watches what it really uses
            limit_memory(fresh + COMPILER_BYTES + request["memory_bytes"])
        try:
            if program is None:
                program = Program(link, Path(request["program"]), platform, request["exact"])
            answer(link, program, request)
        except Refused as refused:
            link.fail(refused)
        except MemoryError:
            link.fail(Refused("MEMORY", "the program does not fit into its memory"))
        else:
            link.send(Kind.DONE)


if __name__ == "__main__":
    confine()
    leave_network()
    serve(Link(int(sys.argv[1])), sys.argv[2])
