"""Programs against plain jax, and what a check accepts."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from computemesh import workloads
from computemesh.sandbox.arrays import parse_type
from computemesh.sandbox.process import JobFailed
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads import Claim, Context, program
from computemesh.workloads.contract import JobResult
from tests.workloads import programs

TASK = workloads.get("program")
HEX = "ab" * 32


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return programs.FolderFiles(tmp_path_factory.mktemp("programs"))


def layer(x, w):
    """One layer of a network and its winner: a float and an integer output."""
    import jax.numpy as jnp

    return {"y": jnp.tanh(x @ w), "winner": jnp.argmax(x.sum(0))}


@pytest.fixture(scope="module")
def mapped(store):
    """(jobs, params, arrays) of 20 items over shared weights."""
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(20, 8, 32)).astype(np.float32), rng.normal(size=(32, 16)).astype(np.float32)
    params = TASK.parse({
        "program": store.put(programs.exported(layer, "float32[8,32]", "float32[32,16]")),
        "inputs": store.put(programs.npz(x, w)), "outputs": ["int32[]", "float32[8,16]"], "tolerance": 1e-4,
        "map": True, "items": 20, "items_per_job": 8,
    })  # fmt: skip
    return [replace(spec, files=store) for spec in TASK.split(params, bytes(32))], params, (x, w)


@pytest.fixture(scope="module")
def outcomes(mapped):
    return [TASK.execute(spec, Context()) for spec in mapped[0]]


def test_a_mapped_program_gives_what_plain_jax_gives(mapped, outcomes):
    import jax

    specs, params, (x, w) = mapped
    assert [TASK.layout(spec).count for spec in specs] == [8, 8, 4]
    results = [JobResult(bytes(32), outcome.output) for outcome in outcomes]
    (artifact,) = TASK.assemble(params, results)
    found = np.load(io.BytesIO(artifact.data), allow_pickle=False)
    mine = [jax.jit(layer)(one, w) for one in x]
    assert found["out0"].tolist() == [int(one["winner"]) for one in mine]
    np.testing.assert_array_equal(found["out1"], np.stack([one["y"] for one in mine]))


def test_one_item_alone_is_the_same_bytes_as_in_its_job(mapped, outcomes):
    spec, outcome = mapped[0][1], outcomes[1]
    alone = program.run_items(spec, [5], "cpu")
    assert alone[5] == outcome.units(5) == TASK.output_units(spec, outcome.output, [5])[0]


def test_a_wrong_item_is_found_and_the_right_ones_are_not(mapped, outcomes):
    spec, outcome = mapped[0][2], outcomes[2]
    units = [outcome.units(i) for i in range(4)]
    wrong = bytearray(units[2])
    wrong[4:] = (np.frombuffer(units[2][4:], np.float32) * np.float32(1.001)).tobytes()
    winner = bytes([units[3][0] ^ 1]) + units[3][1:]
    claims = [Claim(0, units[0]), Claim(1, units[1][:-1]), Claim(2, bytes(wrong)), Claim(3, winner)]
    assert [digest is not None for digest in TASK.expected_digests(spec, claims)] == [True, False, False, False]
    with pytest.raises(InvalidProof, match="outside of a job of 4 items"):
        TASK.check(spec, 4, units[0], None)


@pytest.mark.parametrize(
    ("tolerance", "accepted"),
    [(1e-5, {"float64"}), (1e-3, {"float64", "float16"}), (1e-1, {"float64", "float16", "bfloat16"})],
)
def test_a_tolerance_concedes_the_precisions_that_the_docs_say(tolerance, accepted):
    """A 256-long product: what other precisions of its inputs achieve inside the tolerance."""
    import ml_dtypes

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(64, 256)).astype(np.float32), rng.normal(size=(256, 64)).astype(np.float32)
    mine = (a @ b).tobytes()
    job = program.Job(0, 0, 1, 1, 60, 2**20, tolerance, bytes(32), bytes(32), (parse_type("float32[64,64]"),))
    kinds = {"float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": None}
    found = set()
    for name, kind in kinds.items():
        if kind is None:
            scale = max(np.abs(a).max(), np.abs(b).max()) / 127
            x, y = np.round(a / scale) * scale, np.round(b / scale) * scale
        else:
            x, y = (m.astype(kind).astype(np.float64) for m in (a, b))
        if program.agrees(job, (x @ y).astype(np.float32).tobytes(), mine):
            found.add(name)
    assert found - {"int8"} == accepted
    assert "int8" not in found or tolerance == 1e-1


def test_infinities_and_nans_must_stand_where_they_stood():
    job = program.Job(0, 0, 1, 1, 60, 2**20, 0.01, bytes(32), bytes(32), (parse_type("float32[3]"),))
    mine = np.array([1, np.nan, np.inf], np.float32).tobytes()
    for values, good in (([1.001, np.nan, np.inf], True), ([1, 1, np.inf], False), ([np.nan, np.nan, np.inf], False),
                         ([1, np.nan, -np.inf], False), ([np.inf, np.nan, np.inf], False)):  # fmt: skip
        assert program.agrees(job, np.array(values, np.float32).tobytes(), mine) == good
    zeros = np.zeros(3, np.float32).tobytes()
    assert not program.agrees(job, np.array([0, 1e-30, 0], np.float32).tobytes(), zeros)


def test_an_exact_program_has_one_answer(store):
    params = TASK.parse(programs.SMALL)
    spec = replace(TASK.split(params, bytes(32))[1], files=programs.SmallFiles())
    outcome = TASK.execute(spec, Context())
    assert np.frombuffer(outcome.output, np.int32).tolist() == [118, 178]  # OEIS A006577 at 97 and 871
    off = np.array([119], np.int32).tobytes()
    assert TASK.expected_digests(spec, [Claim(0, off), Claim(1, outcome.units(1))])[0] is None


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("lambda x: (x.astype('float32') * 2).astype('int32')", "computes with floats"),
        ("lambda x: x.at[jnp.array([0, 0])].set(jnp.array([1, 2], 'int32'))", "stablehlo.scatter here depends"),
        ("lambda x: jax.lax.reduce(x, jnp.int32(0), jnp.subtract, (0,))", "stablehlo.reduce here depends"),
        ("lambda x: jax.lax.sort((x, x[::-1]), is_stable=False, num_keys=1)", "stablehlo.sort here depends"),
    ],
)
def test_what_is_not_the_same_everywhere_is_not_exact(store, function, text):
    import jax
    import jax.numpy as jnp

    made = programs.exported(eval(function, {"jax": jax, "jnp": jnp}), "int32[4]", exact=True)
    count = 2 if "sort" in function else 1
    outputs = ["int32[]"] if "subtract" in function else ["int32[4]"] * count
    payload = {"program": store.put(made), "inputs": store.put(programs.npz(np.arange(4, dtype=np.int32))),
               "outputs": outputs, "exact": True}  # fmt: skip
    spec = replace(TASK.split(TASK.parse(payload), bytes(32))[0], files=store)
    with pytest.raises(JobFailed, match=text):
        TASK.execute(spec, Context())


def test_what_integers_programs_usually_do_is_exact(store):
    import jax
    import jax.numpy as jnp

    def usual(x):
        key = jax.random.key(7)
        return jnp.stack([jnp.argmax(x), jnp.argmin(x), jnp.sort(x)[0], jnp.argsort(x)[0], jnp.cumsum(x)[-1],
                          x.at[2].set(9).sum(), x.at[jnp.array([0, 0])].add(1).max(),
                          jax.random.randint(key, (), 0, 1000)]).astype(jnp.int32)  # fmt: skip

    made = programs.exported(usual, "int32[4]", exact=True)
    payload = {"program": store.put(made), "inputs": store.put(programs.npz(np.array([3, 1, 4, 1], np.int32))),
               "outputs": ["int32[8]"], "exact": True}  # fmt: skip
    spec = replace(TASK.split(TASK.parse(payload), bytes(32))[0], files=store)
    found = np.frombuffer(TASK.execute(spec, Context()).output, np.int32).tolist()
    assert found == usual(jnp.array([3, 1, 4, 1], jnp.int32)).tolist()


def test_a_programs_next_job_neither_starts_nor_compiles_again(mapped, outcomes):
    spec = mapped[0][2]
    TASK.execute(spec, Context())
    before = program._KEEPER._kept[1].pid
    begin = time.monotonic()
    TASK.execute(spec, Context())
    assert program._KEEPER._kept[1].pid == before
    assert time.monotonic() - begin < 1.0


def test_a_lost_lease_stops_a_program(store):
    def lost(_):
        raise KeyboardInterrupt

    endless = programs.endless_loop()
    payload = {"program": store.put(endless), "inputs": store.put(programs.npz(np.zeros(4, np.float32))),
               "outputs": ["float32[4]"], "tolerance": 0.1, "timeout_s": 60}  # fmt: skip
    spec = replace(TASK.split(TASK.parse(payload), bytes(32))[0], files=store)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        TASK.execute(spec, Context(progress=lost))
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        ({"program": "xyz"}, "program", "the SHA-256 of a program artifact"),
        ({"outputs": []}, "outputs", "a list of 1 to 16 array types"),
        ({"outputs": ["float7[3]"]}, "outputs", "'float7[3]' is not NAME[EXTENTS]"),
        ({"outputs": ["float32[268435456,4]"]}, "outputs", "4,294,967,296 bytes; must be 1 to 268,435,456"),
        ({"items": 3}, "items", "must be 1 without map"),
        ({"tolerance": None}, "tolerance", "tolerance is missing"),
        ({"exact": True}, "tolerance", "must be left out of an exact task"),
        ({"exact": True, "tolerance": None}, "exact", "exact needs integer or bool outputs"),
        ({"tolerance": 0.5}, "tolerance", "a number above 0, at most 0.1"),
        ({"timeout_s": 0}, "timeout_s", "whole seconds per job from 1 to 3,600"),
        ({"map": True, "items": 1_000_000, "items_per_job": 1}, "items_per_job", "1,000,000 jobs"),
        ({"map": True, "items": 10_000, "items_per_job": 10_000, "outputs": ["uint8[100000]"]}, "items_per_job",
         "1,000,000,000; a job may leave 268,435,456"),
    ],
)  # fmt: skip
def test_a_bad_payload_is_refused_by_field(change, field, text):
    payload = {"program": HEX, "inputs": HEX, "outputs": ["float32[2]"], "tolerance": 0.01} | change
    with pytest.raises(InvalidArgument) as caught:
        TASK.parse({name: value for name, value in payload.items() if value is not None})
    assert any(where == f"payload.{field}" and text in said for where, said in caught.value.violations)


def test_push_writes_an_artifact_that_says_nothing_of_its_maker(tmp_path):
    source = tmp_path / "my_private_model.py"
    source.write_text("import jax.numpy as jnp\ndef energy(x, n):\n    return jnp.sum(x ** 2) + n\n")
    def mesh(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "computemesh.cli", "program", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shapes = ["--input-shapes", "float32[8], int32[]", "-o", str(tmp_path / "p"), "--json"]
    pushed = mesh("push", f"{source}:energy", *shapes)
    assert pushed.returncode == 0, pushed.stderr
    assert '"float32[]"' in pushed.stdout
    assert b"my_private_model" not in (tmp_path / "p").read_bytes()
    assert os.path.getsize(tmp_path / "p") < 4096
    source.write_text("import jax\ndef bad(x):\n    return jax.numpy.linalg.svd(x)[1]\n")
    shapes = ["--input-shapes", "float32[4,4]", "-o", str(tmp_path / "q")]
    refused = mesh("push", f"{source}:bad", *shapes)
    assert refused.returncode == 1
    assert "PROGRAM_REFUSED" in refused.stderr
    assert "lapack_sgesdd_ffi" in refused.stderr
    assert not (tmp_path / "q").exists()
