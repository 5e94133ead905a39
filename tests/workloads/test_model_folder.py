"""Hostile and broken model folders: each is refused by name, before it costs, and the next honest job is done."""

import json
import pickle
import struct
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from computemesh.trust.errors import InvalidArgument
from computemesh.workloads import Context, get
from tests.workloads import inference_models as made
from tests.workloads.inference_models import FolderFiles

TASK = get("inference")
NEXT_JOB_S = 10.0  # of CPU time, so that other load does not count


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("honest") / "gpt2"
    made.gpt2(path, n_layer=1)
    return path


@pytest.fixture
def folder(honest, tmp_path):
    path = tmp_path / "copy"
    path.mkdir()
    for file in honest.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def run(path, **payload):
    files = FolderFiles()
    params = TASK.parse({"model_id": files.add(path), "prompt": "A worker", "max_tokens": 2, **payload})
    return TASK.execute(replace(TASK.split(params, bytes(32))[0], files=files), Context())


def edit(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def header(path, change):
    """Rewrite the header of the weights; the data stays."""
    data = (path / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def zipped(path):
    with zipfile.ZipFile(path / "weights.dat", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))


def huge_declared(path):
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")


BROKEN = {
    "pickle": (lambda p: (p / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb())), "pytorch_model.bin is a pickle"),
    "pickle in disguise": (lambda p: (p / "notes.txt").write_bytes(pickle.dumps(Bomb())), "notes.txt is a pickle"),
    "zipped pickle": (zipped, "weights.dat is a pickle or may hold one"),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "the folder has no tokenizer.json"),
    "bad tokenizer": (lambda p: (p / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizer"),
    "no config": (lambda p: (p / "config.json").unlink(), "the folder has no config.json"),
    "config is no JSON": (lambda p: (p / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "the folder has no model.safetensors"),
    "header of a tebibyte": (huge_declared, "declares a header of 1,099,511,627,776 bytes"),
    "empty weights": (lambda p: (p / "model.safetensors").write_bytes(b""), "has 0 bytes, too few"),
    "truncated": (lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-5000]),
                  "does not lie in the file"),
    "shape": (lambda p: edit(p, n_embd=96), r"has shape \[600, 64\], config.json asks for \[600, 96\]"),
    "layers": (lambda p: edit(p, n_layer=2), "tensor 'transformer.h.1.*' is missing"),
    "sizes": (lambda p: edit(p, n_embd=10**12), "n_embd must be a number from 1 to"),
    "text for a number": (lambda p: edit(p, n_layer="12"), "n_layer must be a number from 1 to 256, not 12"),
    "type": (lambda p: edit(p, model_type="mamba"), "of type 'mamba' cannot generate; those that can are llama"),
    "offsets": (lambda p: header(p, lambda e: e["transformer.ln_f.weight"].update(data_offsets=[0, 2**50])),
                "tensor 'transformer.ln_f.weight' of shape .* does not lie in the file"),
    "dtype": (lambda p: header(p, lambda e: e["transformer.ln_f.weight"].update(dtype="I32")), "has dtype I32; known"),
    "no offsets": (lambda p: header(p, lambda e: e.update({"x": 3})), "tensor 'x' has no dtype, shape"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused_by_name(folder, kind):
    spoil, message = BROKEN[kind]
    spoil(folder)
    with pytest.raises(InvalidArgument, match=message):
        run(folder)


def test_after_refusals_an_honest_folder_is_served_at_once(honest):
    begin = time.process_time()
    assert run(honest).output
    assert time.process_time() - begin < NEXT_JOB_S


def test_nan_weights_too_long_inputs_and_models_larger_than_paid_for_are_refused(folder, honest):
    for path in (folder, honest):  # one is not loaded yet, the other is
        with pytest.raises(InvalidArgument, match="weights; the task pays for at most 1,000"):
            run(path, model_parameters=1000)
    with pytest.raises(InvalidArgument, match="input 0 has 604 tokens; this model and task take at most 510"):
        run(honest, prompt="#!" * 302, max_input_tokens=4096)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InvalidArgument, match="holds NaN or infinity"):
        run(folder)


def test_noise_is_standard_gumbel_and_any_row_is_had_alone():
    import jax.numpy as jnp

    from computemesh.kernels.models.noise import gumbel, gumbel_of

    words = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    words[:4] = [0, 2**32 - 1, 2**31, 2**31 - 1]
    found = np.asarray(gumbel_of(words)) / 2**16
    expected = -np.log(-np.log1p(-((words | 1) / 2.0**32)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert stats.kstest(found, "gumbel_r").pvalue > 0.01
    key = jnp.array([7, 8], jnp.uint32)
    rows = gumbel(key, jnp.array([3, 4], jnp.uint32), jnp.array([0, 9], jnp.uint32), 1001)
    alone = gumbel(key, jnp.array([4], jnp.uint32), jnp.array([9], jnp.uint32), 1001)
    assert (rows[1] == alone[0]).all()
    assert not (rows[0] == rows[1]).any()


def test_integer_operations_are_near_the_float_ones_row_by_row():
    import jax
    import jax.numpy as jnp

    from computemesh.kernels.models import floating, integer

    chance = np.random.default_rng(1)
    with jax.enable_x64(True):
        x = chance.normal(0, 2, (3, 5, 96)).astype(np.float32)
        fixed = jnp.asarray(np.rint(x * 65536), jnp.int32)
        weight, gain = chance.normal(0, 0.1, (40, 96)).astype(np.float32), chance.normal(1, 0.2, 96).astype(np.float32)
        pairs = {
            "gelu": ((x,), (fixed,), 1e-4), "gelu_tanh": ((x,), (fixed,), 1e-4), "silu": ((x,), (fixed,), 1e-4),
            "tanh": ((x,), (fixed,), 1e-4),
            "rms_norm": ((x, gain, 1e-6), (fixed, integer.vector(gain), 1e-6), 1e-3),
            "layer_norm": ((x, gain, gain, 1e-5), (fixed, *[integer.vector(gain)] * 2, 1e-5), 1e-3),
            "linear": ((x, floating.matrix(weight)), (fixed, integer.matrix(weight)), 0.1),
        }  # fmt: skip
        for name, (floats, integers, tolerance) in pairs.items():
            near = np.asarray(getattr(integer, name)(*integers)) / 65536
            np.testing.assert_allclose(near, getattr(floating, name)(*floats), atol=tolerance, err_msg=name)
            one = getattr(integer, name)(integers[0][1:2, 2:3], *integers[1:])
            assert (np.asarray(one[0, 0]) == np.rint(near[1, 2] * 65536)).all(), name
        q = x.reshape(3, 5, 6, 16)
        mask = jnp.tril(jnp.ones((5, 5), bool))[None].repeat(3, 0)
        expected = floating.attend(q, q, q, mask, 0.25)
        rows = integer.pack(fixed.reshape(q.shape))
        found = integer.attend(fixed.reshape(q.shape), rows, rows, mask, integer.constant(0.25))
        np.testing.assert_allclose(np.asarray(found) / 65536, expected, atol=0.06)


def test_rotation_tables_are_cosines_and_sines():
    from computemesh.kernels.models.integer_tables import rotation_table

    frequencies = ["1", "0.1778279410038922801225421195", "0.0001"]
    cos, sin = rotation_table(frequencies, 1000)
    angles = np.arange(1000)[:, None] * np.array([float(f) for f in frequencies])
    assert np.abs(cos - np.cos(angles) * 2**30).max() < 1
    assert np.abs(sin - np.sin(angles) * 2**30).max() < 1
