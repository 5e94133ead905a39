"""What is spliced, signed and judged is exactly what the contracts and the protocol say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh import workloads
from computemesh.service.transactions import uuid7
from computemesh.trust import audit as rules
from computemesh.trust import envelope, merkle, statement
from computemesh.trust.errors import InvalidArgument, Unauthorized
from computemesh.trust.identity import PrivateKey
from computemesh.trust.statement import Commitment
from computemesh.v1 import ledger_pb2
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.workloads import JobSpec
from orchestrator import audit, settlement, wire
from orchestrator import events as e
from orchestrator.model import Batch, Lease, Part
from tests.orchestrator.scene import Scene, key, task

CHAIN = "computemesh-test"
KEY = PrivateKey.from_bytes(bytes(31) + b"\x07")
SEED = bytes(range(32))


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.binary(max_size=4096), st.sampled_from([b"", bytes(range(32))]),
)  # fmt: skip
def test_spliced_jobs_are_the_contracts_messages(
    lease_id: int, index: int, epoch: int, attempt: int, params: bytes, binding: bytes
) -> None:
    held = task(1, jobs=1, epoch=epoch)
    lease = Lease(lease_id, held, index, attempt, JobSpec(held.id, index, params, binding=binding), 0)
    (message,) = wire.job_batches([lease], 60_000)
    (job,) = pb.WorkResponse.FromString(message).jobs.jobs
    assert job == pb.Job(
        lease_id=lease_id, task_id=held.id, index=index, task_epoch=epoch, attempt=attempt, challenge_type="noop",
        params=params, binding=binding, lease_ms=60_000,
    )  # fmt: skip


@given(st.lists(st.integers(0, 4096), min_size=1, max_size=400))
def test_batches_keep_order_and_stay_within_128_jobs_and_64_kib(sizes: list[int]) -> None:
    held = task(1, jobs=1)
    leases = [Lease(n, held, 0, 1, JobSpec(held.id, 0, bytes(size)), 0) for n, size in enumerate(sizes)]
    batches = [pb.WorkResponse.FromString(raw).jobs for raw in wire.job_batches(leases, 1)]
    assert [job.lease_id for batch in batches for job in batch.jobs] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch.jobs) <= wire.MAX_BATCH_JOBS
        assert batch.ByteSize() <= wire.MAX_BATCH_BYTES


def test_verdicts_of_a_kind_share_one_row() -> None:
    items = [e.SendVerdicts(1, e.SETTLED, [1, 2]), e.SendVerdicts(1, e.STALE, [9]), e.SendVerdicts(1, e.SETTLED, [3])]
    (message,) = wire.assemble(items, 1)
    rows = [(row.kind, list(row.lease_ids)) for row in message.verdicts.verdicts]  # type: ignore[attr-defined]
    assert rows == [(e.SETTLED, [1, 2, 3]), (e.STALE, [9])]


def test_recomputed_transcripts_are_the_protocols() -> None:
    specs = list(task(1, jobs=3).jobs)
    roots = [merkle.leaf_hash(found) for found in workloads.get("noop").recompute(specs)]
    roots[1] = bytes(32)
    rows = [("noop", spec, root, 32) for spec, root in zip(specs, roots, strict=True)]
    accepted, proofs = audit.recompute(rows)
    assert accepted == [True, False, True]
    for root, good, proof in zip(roots, accepted, proofs, strict=True):
        assert proof == rules.transcript_digest(root, None, 32, 1, b"", good)


def synthetic(iterations: int = 2) -> tuple[JobSpec, rules.JobTree]:
    workload = workloads.get("synthetic")
    params = workload.parse({"matrix_size": 96, "iterations": iterations, "seed": "x"})
    spec = workload.split(params, bytes(32))[0]
    digests = workload.recompute([spec])[0]
    return spec, rules.JobTree(workload.layout(spec), digests)


def opened(tree: rules.JobTree, k: int, leaf: bytes) -> list[rules.Opening]:
    return [tree.open(unit) for unit in rules.sample(SEED, leaf, tree.layout.count, k)]


def test_true_openings_are_accepted_and_any_changed_byte_is_not() -> None:
    spec, tree = synthetic()
    leaf = bytes([5]) * 32
    data = rules.openings_bytes(opened(tree, 6, leaf))
    accepted, proof, _ = audit.judge_opening("synthetic", spec, leaf, SEED, 6, tree.result_hash, data)
    assert accepted
    assert proof == rules.transcript_digest(tree.result_hash, SEED, 6, 18, data, True)
    for at in np.random.default_rng(1).integers(0, len(data), 40):
        bad = bytearray(data)
        bad[at] ^= 1
        accepted, _, why = audit.judge_opening("synthetic", spec, leaf, SEED, 6, tree.result_hash, bytes(bad))
        assert not accepted
        assert why


def test_openings_of_other_units_fewer_or_in_another_order_are_wrong() -> None:
    spec, tree = synthetic()
    leaf = bytes([5]) * 32
    right = opened(tree, 6, leaf)
    others = [tree.open(unit) for unit in range(6)]
    for answer in ([], right[:-1], right[::-1], [*right, right[0]], others):
        data = rules.openings_bytes(answer)
        assert not audit.judge_opening("synthetic", spec, leaf, SEED, 6, tree.result_hash, data)[0]


@given(st.binary(max_size=300))
def test_garbage_openings_are_judged_not_raised(data: bytes) -> None:
    spec, tree = SHARED
    assert not audit.judge_opening("synthetic", spec, bytes(32), SEED, 32, tree.result_hash, data)[0]


SHARED = synthetic(1)


def batch_of(count: int) -> tuple[bytes, bytes]:
    rows = b"".join(
        Commitment(bytes(32), index, 1, 1, KEY.public, bytes([index]) * 32, index + 1).pack() for index in range(count)
    )
    return rows, statement.sign_commitments(KEY, CHAIN, rows)


def test_batch_is_read_only_with_its_keys_signature() -> None:
    rows, signature = batch_of(3)
    leaves, root = audit.read_batch(KEY.public, CHAIN, 3, rows, signature)
    assert (len(leaves), root) == (3, statement.commitment_root(rows))
    with pytest.raises(Unauthorized, match="is not by"):
        audit.read_batch(KEY.public, "another", 3, rows, signature)
    with pytest.raises(InvalidArgument, match=r"354 bytes, must be 2 \* 118"):
        audit.read_batch(KEY.public, CHAIN, 2, rows, signature)


@pytest.mark.parametrize("positions", [[0, 1, 2, 3], [1, 3]], ids=["whole", "part"])
def test_settle_transaction_is_signed_over_its_results(positions: list[int]) -> None:
    rows, signature = batch_of(4)
    leaves = statement.leaves(rows, 118)
    batch = Batch(1, KEY.public, 0, rows, signature, leaves, [None] * 4)
    batch.root = merkle.root(leaves)
    proofs = [bytes([n]) * 32 for n in positions]
    tx_id = uuid7()
    transaction = ledger_pb2.Transaction.FromString(
        settlement.build(KEY, CHAIN, tx_id, [Part(batch, positions, proofs)])
    )
    (sent,) = transaction.settle.batches
    assert list(sent.positions) == ([] if len(positions) == 4 else positions)
    assert sent.leaf_hashes == (b"" if len(positions) == 4 else b"".join(leaves))
    results = [
        statement.Result(
            bytes(32), at, KEY.public, bytes([at]) * 32, proof, at + 1,
            statement.authorisation(KEY.public, merkle.root(leaves), at),
        ).pack()
        for at, proof in zip(positions, proofs, strict=True)
    ]  # fmt: skip
    body = statement.settle_body(len(results), merkle.root([merkle.leaf_hash(row) for row in results]))
    assert envelope.verify(KEY.public, "tx/settle", CHAIN, tx_id + body, transaction.signature)


def test_transaction_ids_are_uuid7_and_new() -> None:
    ids = [uuid7() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(raw[6] >> 4 == 7 and raw[8] >> 6 == 2 for raw in ids)
    assert all(a[:6] <= b[:6] for a, b in itertools.pairwise(ids))


def test_parts_of_one_batch_judged_apart_settle_together_in_order() -> None:
    scene = Scene()
    scene.do(e.TaskLeased(task(1, jobs=4, exact_whole=False)))
    scene.worker(1, credits=4)
    leases = scene.held(1)
    scene.commit(1, leases)
    scene.do(e.Opened(1, [(lease.id, b"") for lease in reversed(leases)]))
    scene.judge()
    scene.start_settle()
    (part,) = scene.submitted[0].parts
    assert part.positions == [0, 1, 2, 3]
    assert part.batch.key == key(1)


def test_settle_transaction_holds_no_more_than_the_ledger_takes() -> None:
    scene = Scene()
    scene.settle_results = 5
    scene.do(e.TaskLeased(task(1, jobs=12)))
    scene.worker(1, credits=12)
    scene.finish(1)
    sizes = [[len(part.positions) for part in submit.parts] for submit in scene.submitted]
    assert sizes == [[5], [5], [2]]
    assert len(scene.outcomes) == 1
