"""The `training` type's data: the cursor, and what it refuses of files and payloads."""

import io
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from computemesh.kernels.training import data
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads import Context
from computemesh.workloads import training_job as tj
from tests.workloads.training_tasks import DIGITS, TASK, TASK_ID, TaskFiles, digits_npz, jobs, npz, run_task


@pytest.fixture
def files(tmp_path):
    return TaskFiles(tmp_path)


@pytest.fixture
def payload(files):
    return {**DIGITS, "dataset": files.put(digits_npz())}



def test_the_cursor_visits_every_row_once_per_pass_whatever_the_shards(files):
    x = np.arange(60, dtype=np.float32).reshape(60, 1)
    path = files.root / files.put(npz(x=x, y=np.zeros(60, np.int64)))
    model = tj.whole(TASK.parse({"model_architecture": {"name": "mlp", "inputs": 1}, "dataset": "00" * 32})).model
    rows, seed = data.arrays(path, model), bytes(32)
    for shards in (1, 3):
        drawn = [rows.batch(seed, range(120 // shards), shard, shards)[0].ravel() for shard in range(shards)]
        order = np.stack(drawn, 1).ravel()
        assert sorted(order[:60]) == sorted(order[60:120]) == list(range(60))
        assert list(order[:60]) != list(order[60:120])
        assert list(order) == list(rows.batch(seed, range(len(order)), 0, 1)[0].ravel())
    part = rows.batch(seed, range(70, 90), 1, 3)[0]
    assert (part == rows.batch(seed, range(100), 1, 3)[0][70:90]).all()
    assert (rows.batch(seed, range(20), 0, 1)[0] != rows.batch(b"\x01" * 32, range(20), 0, 1)[0]).any()


def member(header: bytes, body: bytes = b"", compress=zipfile.ZIP_STORED) -> bytes:
    good, out = io.BytesIO(), io.BytesIO()
    np.save(good, np.zeros(3, np.int64))
    with zipfile.ZipFile(out, "w", compress) as archive:
        padded = header + b" " * ((-len(header) - 11) % 64) + b"\n"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body)
        archive.writestr("y.npy", good.getvalue())
    return out.getvalue()


def header(shape, descr="<f4"):
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()


X, Y = np.zeros((3, 64), np.float32), np.zeros(3, np.int64)
NAN = np.where(np.arange(192).reshape(3, 64) == 70, np.nan, 0)
HOSTILE = {
    "zero bytes": (b"", "zero bytes"),
    "no archive": (b"x" * 100, r"not a readable \.npz"),
    "cut off": (npz(x=X, y=Y)[:-200], r"not a readable \.npz"),
    "no y": (npz(x=X), "no array 'y'"),
    "another width": (npz(x=np.zeros((3, 65)), y=Y), r"x has shape \[3, 65\]; the model takes rows of 64 numbers"),
    "no rows": (npz(x=np.zeros((0, 64)), y=np.zeros(0, np.int64)), r"x has shape \[0, 64\]"),
    "other length": (npz(x=X, y=np.zeros(4, np.int64)), r"y has shape \[4\], x has 3 rows"),
    "class 10": (npz(x=X, y=np.array([0, 1, 10])), r"holds 0 to 10; classes are 0 to 9"),
    "NaN": (npz(x=NAN, y=Y), r"array 'x' holds NaN or infinity, first at \[1, 6\]"),
    "beyond float32": (npz(x=np.full((3, 64), 1e300), y=Y), "holds NaN or infinity"),
    "text": (npz(x=np.full((3, 64), "a"), y=Y), "dtype <U1; numbers"),
    "pickle": (npz(x=np.array([[None] * 64] * 3, object), y=Y), "dtype object; numbers"),
    "huge declared": (member(header("(1000000000, 64)")), r"has 256,000,000,000 bytes; at most 536,870,912"),
    "longer than it is": (member(header("(300000, 64)"), bytes(99)), r"declares 76,800,000 bytes of data"),
    "negative": (member(header("(-1, 64)"), bytes(99)), "dataset: "),
    "header bomb": (member(header("(3, 64)") + b" " * 20_000, bytes(768)), r"not a readable \.npz"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_dataset_is_refused_and_the_next_job_is_done(files, payload, name):
    content, message = HOSTILE[name]
    _, specs = jobs({**payload, "dataset": files.put(content)}, files)
    with pytest.raises(InvalidArgument, match=message) as refused:
        TASK.execute(specs[0], Context())
    assert refused.value.violations[0][0] == "dataset"
    begin = time.process_time()
    run_task({**payload, "examples": 64, "epochs": 1}, files, audit=True)
    assert time.process_time() - begin < 10


def test_a_member_that_unpacks_to_more_than_it_declares_is_not_unpacked(files, payload):
    import tracemalloc

    content = member(header("(1000000, 64)"), bytes(2**26), zipfile.ZIP_DEFLATED)
    path = files.root / files.put(content)
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match="declares 256,000,000 bytes of data"):
        data.arrays(path, tj.whole(TASK.parse(payload)).model)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "zero bytes"), (b"abc\xff" * 99, "not UTF-8 text: byte 3"), (b"short", "has 5 tokens; two windows")],
)
def test_a_hostile_text_is_refused(files, content, message):
    _, specs = jobs({"model_architecture": "char_transformer", "dataset": files.put(content)}, files)
    with pytest.raises(InvalidArgument, match=message):
        TASK.execute(specs[0], Context())


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"model_architecture": "resnet"}, "model_architecture.name", "name must be one of mlp, cnn, char_transformer"),
        ({"model_architecture": {"name": "mlp", "layers": 2}}, "model_architecture.layers", "not a size of mlp"),
        ({"model_architecture": {"name": "mlp", "inputs": 0.5}}, "model_architecture.inputs", "whole number from 1"),
        ({"model_architecture": {"name": "mlp", "hidden": [8192] * 4}}, "model_architecture", "are a state of"),
        ({"model_architecture": {"name": "char_transformer", "hidden": 60, "heads": 7}}, "model_architecture.hidden",
         "multiple of twice heads"),
        ({"optimizer": "lion"}, "optimizer", "optimizer must be one of sgd, momentum, adam, adamw, not 'lion'"),
        ({"learning_rate": 0}, "learning_rate", "learning_rate must be a number above 0"),
        ({"learning_rate": "0.1"}, "learning_rate", "learning_rate must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate", "learning_rate must be"),
        ({"frozen": ["*"]}, "frozen", "nothing is left to train"),
        ({"frozen": ["encoder.*"]}, "frozen", "'encoder.*' matches no tensor; the first are layers.0.weight"),
        ({"fresh": ["layers.1.*"]}, "fresh", "it needs model_id"),
        ({"dataset": "digits"}, "dataset", "dataset must be an artifact's SHA-256"),
        ({"rounds": 1000, "workers": 256}, "rounds", "bytes of states"),
        ({"epochs": 10_000, "examples": 2**24, "batch_size": 1}, "epochs", "steps per worker"),
    ],
)  # fmt: skip
def test_a_payload_is_refused_by_field(payload, changes, field, message):
    with pytest.raises(InvalidArgument, match=message) as refused:
        TASK.parse({**payload, **changes})
    assert refused.value.violations[0][0] == f"payload.{field}"


def test_params_survive_the_wire_and_damaged_ones_are_refused(payload):
    spec = TASK.split(TASK.parse({**payload, "rounds": 2, "frozen": ["layers.0.*"]}), TASK_ID)[1]
    job = tj.read_job(spec)
    assert job.pack() == spec.params
    assert job.trainable == ("layers.1.weight", "layers.1.bias")
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        raw = bytearray(spec.params)
        raw[rng.integers(len(raw))] ^= int(rng.integers(1, 256))
        try:
            TASK.layout(replace(spec, params=bytes(raw)))
        except InvalidArgument:
            refused += 1
    assert refused > 20

