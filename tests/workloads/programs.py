"""Programs for tests: honest ones, and hostile ones that `jax.export` would not write by itself."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from unittest import mock

import numpy as np

from computemesh.sandbox.arrays import pack_program, parse_type
from computemesh.sandbox.exporting import export_program

DATA = Path(__file__).parent / "data"
COLLATZ = DATA / "collatz.program"  # made once, so that tests notice when it cannot be read any more
SMALL = {
    "program": hashlib.sha256(COLLATZ.read_bytes()).hexdigest(),
    "inputs": hashlib.sha256((DATA / "collatz.npz").read_bytes()).hexdigest(),
    "outputs": ["int32[]"], "map": True, "items": 6, "items_per_job": 2, "exact": True,
}  # fmt: skip


class SmallFiles:
    """The files of `SMALL`."""

    def artifact(self, digest: bytes) -> Path:
        return COLLATZ if digest.hex() == SMALL["program"] else DATA / "collatz.npz"


class FolderFiles:
    """A job's files from a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder_path = folder

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder_path / digest).write_bytes(data)
        return digest

    def artifact(self, digest: bytes) -> Path:
        return self.folder_path / digest.hex()


def npz(*arrays, **named) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{f"arg{i}": array for i, array in enumerate(arrays)}, **named)
    return file.getvalue()


def exported(function, *types: str, exact: bool = False) -> bytes:
    return export_program(function, [parse_type(text) for text in types], exact=exact)


def forged(function, *types: str, platforms=("cpu",), **changes) -> bytes:
    """An export with JAX's own checks off: whoever attacks writes the bytes directly."""
    from dataclasses import replace

    import jax
    from jax import export
    from jax._src.export import _export

    specs = [jax.ShapeDtypeStruct(kind.shape, kind.dtype) for kind in map(parse_type, types)]
    unchecked = mock.patch.multiple(_export, _check_lowering=mock.DEFAULT, _check_module=mock.DEFAULT)
    with unchecked as patched:
        patched["_check_module"].return_value = True
        made = export.export(jax.jit(function), platforms=platforms)(*specs)
    return pack_program(bytes(replace(made, **changes).serialize()))


def io_callback():
    from jax.experimental import io_callback as call

    return forged(lambda x: call(lambda v: v, x, x), "float32[4]", unordered_effects=())


def ordered_io_callback():
    from jax.experimental import io_callback as call

    return forged(lambda x: call(lambda v: v, x, x, ordered=True), "float32[4]", ordered_effects=())


def pure_callback():
    import jax

    return forged(lambda x: jax.pure_callback(lambda v: v, x, x), "float32[4]")


def ffi_call():
    import jax

    return forged(lambda x: jax.ffi.ffi_call("system_shell", x)(x), "float32[4]")


def endless_loop():
    import jax

    return exported(lambda x: jax.lax.while_loop(lambda c: c[0] > -1, lambda c: c * 0 + 1, x), "float32[4]")


def vast_broadcast():
    """10**12 elements that must all exist, because they are sorted."""
    import jax
    import jax.numpy as jnp

    def smallest(x):
        return jax.lax.sort(jnp.broadcast_to(x, (250_000_000_000, 4)), dimension=0)[0]

    return exported(smallest, "float32[4]")


def vast_output():
    import jax.numpy as jnp

    return exported(lambda x: jnp.broadcast_to(x, (2**28, 4)), "float32[4]")


def outfeed():
    """A module written by hand: jax.export never emits it."""
    body = """module @jit_f {
      func.func public @main(%arg0: tensor<4xf32>) -> tensor<4xf32> {
        %0 = stablehlo.create_token : !stablehlo.token
        %1 = "stablehlo.outfeed"(%arg0, %0) : (tensor<4xf32>, !stablehlo.token) -> !stablehlo.token
        return %arg0 : tensor<4xf32>
      }
    }"""
    return handwritten(body)


def lying_signature():
    """Says that it returns 16 bytes, and returns 4 GiB."""
    body = """module @jit_f {
      func.func public @main(%arg0: tensor<4xf32>) -> tensor<268435456x4xf32> {
        %0 = stablehlo.broadcast_in_dim %arg0, dims = [1] : (tensor<4xf32>) -> tensor<268435456x4xf32>
        return %0 : tensor<268435456x4xf32>
      }
    }"""
    return handwritten(body)


def handwritten(text: str) -> bytes:
    from jax._src.interpreters.mlir import make_ir_context
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo

    with make_ir_context():
        module = bytes(stablehlo.serialize_portable_artifact(ir.Module.parse(text), "1.8.0"))
    return forged(lambda x: x, "float32[4]", mlir_module_serialized=module)


def two_devices():
    return forged(lambda x: x + 1, "float32[4]", nr_devices=2)


def triple():
    return exported(lambda x: x * 3 + 1, "float32[4]")


def collatz():
    """Steps of an integer to 1: exact, and its loop's length is data."""
    import jax
    import jax.numpy as jnp

    def steps(n):
        def body(c):
            return jnp.where(c[0] % 2 == 0, c[0] // 2, 3 * c[0] + 1), c[1] + 1

        return jax.lax.while_loop(lambda c: c[0] != 1, body, (n, jnp.int32(0)))[1]

    return exported(steps, "int32[]", exact=True)
