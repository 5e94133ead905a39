"""From a JAX function to a program artifact: what `mesh program push` does on the customer's machine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from computemesh.sandbox.arrays import DTYPES, ArrayType, pack_program
from computemesh.trust.errors import InvalidArgument

# Of November 2024. Every jaxlib since reads it, so an artifact outlives the release that wrote it.
STABLEHLO_VERSION = "1.8.0"
PLATFORMS = ("cpu", "cuda")


def load_function(source: str) -> Callable[..., Any]:
    """The function that `module.py:name` names. Runs the file. Raises InvalidArgument."""
    file, colon, name = source.rpartition(":")
    path = Path(file)
    if not colon or not name.isidentifier() or not path.is_file():
        raise _bad(f"{source!r} is not FILE.py:FUNCTION with a file that exists")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise _bad(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    function = getattr(module, name, None)
    if not callable(function):
        raise _bad(f"{path} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def export_program(
    function: Callable[..., Any], inputs: Sequence[ArrayType], *, exact: bool = False, precision: str = "highest"
) -> bytes:
    """The program artifact of a function of arrays of these types.

    Exported for CPU and CUDA; an exact one once, because what asks for its platform is not the same everywhere. The
    module is written for a pinned version of StableHLO and without source locations, which would tell file names.
    `precision` is that of matrix products which the function leaves open: at "default" a GPU multiplies float32 in
    TF32, three digits worse than the CPU that checks it.
    Raises InvalidArgument with JAX's reason where the function cannot be exported.
    """
    import jax
    from jax import export

    def flat(*arguments: Any) -> tuple[Any, ...]:
        return tuple(jax.tree_util.tree_leaves(function(*arguments)))

    specs = [jax.ShapeDtypeStruct(kind.shape, kind.dtype) for kind in inputs]  # type: ignore[no-untyped-call]
    wide = any(kind.dtype in ("int64", "uint64", "float64") for kind in inputs)
    try:
        with jax.enable_x64(wide or bool(jax.config.values["jax_enable_x64"])), jax.default_matmul_precision(precision):
            exported = export.export(
                jax.jit(flat), platforms=("cpu",) if exact else PLATFORMS,
                disabled_checks=[export.DisabledSafetyCheck.platform()] if exact else [],
            )(*specs)  # fmt: skip
        if strange := [str(aval.dtype) for aval in exported.out_avals if str(aval.dtype) not in DTYPES]:
            raise ValueError(f"it returns {strange[0]}; outputs must be of {', '.join(DTYPES)}")
        return pack_program(bytes(replace(exported, mlir_module_serialized=_portable(exported)).serialize()))
    except Exception as error:
        raise _bad(f"the function cannot be exported: {type(error).__name__}: {str(error)[:600]}") from error


def _portable(exported: Any) -> bytes:
    from jax._src.interpreters.mlir import make_ir_context
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo

    with make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        plain = ir.Module.parse(str(module.operation.get_asm(enable_debug_info=False)))
        try:
            return bytes(stablehlo.serialize_portable_artifact(plain, STABLEHLO_VERSION))
        except Exception:
            # What is newer than the pinned version is mostly what admission refuses; it says so by name.
            return bytes(exported.mlir_module_serialized)


def _bad(text: str) -> InvalidArgument:
    return InvalidArgument(text, violations=[("function", text)])
