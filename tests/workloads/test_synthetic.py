"""The synthetic type: what it refuses, what it computes, what it catches."""

import random
from hashlib import sha256

import numpy as np
import pytest
from blake3 import blake3

from computemesh.trust.audit import JobTree, fold_opening, sample, verify_previous
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads import Claim, Context, JobSpec, bind, get, worker_seed
from computemesh.workloads import synthetic as module

TASK = get("synthetic")
TASK_ID = b"\x07" * 32
RULE = "a multiple of 32 from 32 to 16,384"


def job(index=0, address="cpc1a", **payload):
    spec = TASK.split(TASK.parse(payload), TASK_ID)[index]
    return bind(spec, worker_seed(bytes(32), address))


def accepted(spec, tree, seed):
    """An auditor's whole verdict on a tree."""
    layout, root = TASK.layout(spec), tree.result_hash
    openings = [tree.open(i) for i in sample(seed, bytes(32), layout.count, TASK.sample_size)]
    claims = [Claim(o.index, b"", verify_previous(layout, o, root)) for o in openings]
    digests = TASK.expected_digests(spec, claims)
    return all(fold_opening(layout, o, d) == root for o, d in zip(openings, digests, strict=True))


@pytest.mark.parametrize(
    ("payload", "field", "text"),
    [
        ({"matrix_size": 0}, "matrix_size", f"matrix_size must be {RULE}, not 0"),
        ({"matrix_size": -1}, "matrix_size", f"matrix_size must be {RULE}, not -1"),
        ({"matrix_size": 10**9}, "matrix_size", f"matrix_size must be {RULE}, not 1000000000"),
        ({"matrix_size": 1e9}, "matrix_size", f"matrix_size must be {RULE}, not 1000000000"),
        ({"matrix_size": "abc"}, "matrix_size", f"matrix_size must be {RULE}, not 'abc'"),
        ({"matrix_size": "2048"}, "matrix_size", f"matrix_size must be {RULE}, not '2048'"),
        ({"matrix_size": 2.5}, "matrix_size", f"matrix_size must be {RULE}, not 2.5"),
        ({"matrix_size": 33}, "matrix_size", f"matrix_size must be {RULE}, not 33"),
        ({"matrix_size": True}, "matrix_size", f"matrix_size must be {RULE}, not True"),
        ({"matrix_size": None}, "matrix_size", f"matrix_size must be {RULE}, not None"),
        ({"matrix_size": float("inf")}, "matrix_size", f"matrix_size must be {RULE}, not inf"),
        ({"matrix_size": 10**5000}, "matrix_size", f"matrix_size must be {RULE}, not a number beyond 2^63"),
        ({}, "matrix_size", f"matrix_size is missing; it must be {RULE}"),
        ({"matrix_size": 64, "matrx_size": 1}, "matrx_size", "did you mean matrix_size?"),
        ({"matrix_size": 64, "iterations": 0}, "iterations", "a whole number from 1 to 10,000, not 0"),
        ({"matrix_size": 64, "jobs": 0}, "jobs", "a whole number from 1 to 100,000, not 0"),
        ({"matrix_size": 64, "seed": ""}, "seed", "text of 1 to 128 characters, not ''"),
        ({"matrix_size": 64, "seed": "x" * 129}, "seed", "text of 1 to 128 characters"),
        ({"matrix_size": 64, "seed": ["x"]}, "seed", "text of 1 to 128 characters, not ['x']"),
        ({"matrix_size": 16_384, "iterations": 17}, "iterations", "at most 16 at matrix_size 16,384, not 17"),
        ({"matrix_size": 16_384, "jobs": 100_000}, "jobs", "a task may ask for 1e+17"),
    ],
)
def test_bad_payloads_are_refused_with_field_value_and_limit(payload, field, text):
    with pytest.raises(InvalidArgument) as refused:
        TASK.parse(payload)
    assert text in str(refused.value)
    assert [name for name, _ in refused.value.violations] == [f"payload.{field}"]


def test_every_bad_field_is_named_at_once_and_the_text_stays_short():
    with pytest.raises(InvalidArgument) as refused:
        TASK.parse({"matrix_size": "y" * 10**6, "iterations": -1, **{f"{i}" * 1000: 0 for i in range(100)}})
    assert {"payload.matrix_size", "payload.iterations"} <= {name for name, _ in refused.value.violations}
    assert len(str(refused.value)) < 4000


def test_a_number_as_seed_is_its_decimal_text():
    assert TASK.parse({"matrix_size": 64, "seed": 42.0}) == TASK.parse({"matrix_size": 64, "seed": "42"})


@pytest.mark.parametrize("payload", [{"matrix_size": 64}, {"matrix_size": 96, "iterations": 3}])
def test_every_tile_of_the_device_is_the_verifiers(payload):
    spec = job(**payload)
    assert TASK.recompute([spec])[0] == TASK.execute(spec, Context()).digests


@pytest.mark.parametrize(("size", "iterations"), [(64, 1), (96, 2), (256, 1), (256, 3)])
def test_an_honest_worker_is_accepted_and_one_wrong_tile_asked_for_is_not(size, iterations):
    spec = job(matrix_size=size, iterations=iterations)
    layout, digests = TASK.layout(spec), TASK.execute(spec, Context()).digests
    rng = random.Random(size)
    for _ in range(5):
        seed = rng.randbytes(32)
        assert accepted(spec, JobTree(layout, digests), seed)
        tile = rng.choice(sample(seed, bytes(32), layout.count, TASK.sample_size))
        wrong = bytearray(digests)
        wrong[32 * tile + rng.randrange(32)] ^= 1 << rng.randrange(8)
        assert not accepted(spec, JobTree(layout, bytes(wrong)), seed)


def test_a_wrong_segment_makes_the_following_ones_wrong_unless_they_follow_it():
    spec = job(matrix_size=96, iterations=3)
    layout = TASK.layout(spec)
    digests = bytearray(TASK.execute(spec, Context()).digests)
    digests[0] ^= 1
    tree = JobTree(layout, bytes(digests))
    opening = tree.open(layout.units)  # the first tile of the second segment, honest but for its seed
    previous = verify_previous(layout, opening, tree.result_hash)
    digest = TASK.check(spec, opening.index, b"", previous)
    assert fold_opening(layout, opening, digest) != tree.result_hash


def test_without_a_seed_results_belong_to_one_worker_and_one_task():
    one, other = job(matrix_size=64), job(matrix_size=64, address="cpc1b")
    elsewhere = JobSpec(bytes(32), 0, one.params, binding=one.binding)
    assert len({TASK.recompute([spec])[0] for spec in (one, other, elsewhere)}) == 3


def test_with_a_seed_everybody_gets_the_same_result():
    one, other = job(matrix_size=64, seed="s"), job(matrix_size=64, seed="s", address="cpc1b")
    assert TASK.recompute([one]) == TASK.recompute([other])


def test_progress_is_told_and_can_stop_a_chain():
    told = []
    TASK.execute(job(matrix_size=64, iterations=4), Context(progress=told.append))
    assert told == [0.25, 0.5, 0.75, 1.0]

    class LostLease(Exception):
        pass

    def stop(_fraction):
        raise LostLease

    with pytest.raises(LostLease):
        TASK.execute(job(matrix_size=64, iterations=4), Context(progress=stop))


def test_a_chain_needs_the_previous_root_and_the_first_segment_has_none():
    spec = job(matrix_size=64, iterations=2)
    with pytest.raises(InvalidArgument, match="segment 1 has no previous root"):
        TASK.check(spec, 4, b"", None)
    with pytest.raises(InvalidArgument, match="segment 0 has a previous root"):
        TASK.check(spec, 0, b"", bytes(32))
    with pytest.raises(InvalidProof):
        TASK.check(spec, 8, b"", bytes(32))


def test_a_job_without_seed_has_a_layout_but_no_result_before_it_is_bound():
    spec = TASK.split(TASK.parse({"matrix_size": 64}), TASK_ID)[0]
    assert TASK.layout(spec).count == 4
    for judge_or_run in (lambda: TASK.check(spec, 0, b"", None), lambda: TASK.execute(spec, Context())):
        with pytest.raises(InvalidArgument, match="binding"):
            judge_or_run()


@pytest.mark.parametrize(
    "fields",
    [(2, 0, 64, 1), (1, 2, 64, 1), (1, 0, 0, 1), (1, 0, 33, 1), (1, 0, 2**31, 1), (1, 0, 64, 0), (1, 0, 16_384, 17)],
)
def test_params_of_a_lying_orchestrator_are_refused(fields):
    with pytest.raises(InvalidArgument, match="params of a synthetic job"):
        TASK.layout(JobSpec(TASK_ID, 0, module.PARAMS.pack(*fields, bytes(32))))


def test_known_answer():
    """Written from the module's text with numpy alone. If it changes, old receipts no longer replay."""

    def tag(name, data):
        prefix = sha256(f"computemesh.v1/synthetic/{name}".encode()).digest()
        return sha256(prefix + prefix + data).digest()

    def matrix(label, key):
        return np.frombuffer(blake3(bytes([label, 0, 0, 0]), key=key).digest(64 * 64), np.int8).reshape(64, 64)

    def node(left, right):
        return sha256(b"\x01" + left + right).digest()

    job_key = key = tag("job", tag("seed", b"computemesh") + bytes(4))
    roots = []
    for segment in range(2):
        product = matrix(0, key).astype(np.int64) @ matrix(1, key).astype(np.int64).T
        tiles = [product[r : r + 32, c : c + 32].astype("<i4").tobytes() for r in (0, 32) for c in (0, 32)]
        a, b, c, d = (sha256(b"\x00" + blake3(tile).digest()).digest() for tile in tiles)
        roots.append(node(node(a, b), node(c, d)))
        key = tag("next", job_key + (segment + 1).to_bytes(4, "big") + roots[-1])

    spec = TASK.split(TASK.parse({"matrix_size": 64, "iterations": 2, "seed": "computemesh"}), TASK_ID)[0]
    found = JobTree(TASK.layout(spec), TASK.execute(spec, Context()).digests).result_hash
    assert found == node(*roots)
    assert found.hex() == "de21f0e8367d029e909d2d52faa378cc3be020cffb24261fdc2a8b3a7393c09b"
