"""A receipt holds as a whole, and no single field of it can be changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computemesh.trust import envelope, identity, merkle, receipt, statement
from computemesh.trust.checkpoint import Checkpoint, NoteSigner, sign_note
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import InvalidProof
from computemesh.trust.receipt import JobEvidence, Receipt, SignedAssignment, accepted, verify

CHAIN = "computemesh-test"
CUSTOMER, MARKET, FIRST, SECOND, WORKER, STRANGER = (
    identity.PrivateKey(sha256(name.encode()).digest())
    for name in ("customer", "market", "first", "second", "worker", "stranger")
)
LOG = NoteSigner(f"{CHAIN}/blocks", sha256(b"log").digest())
PAYLOAD: dict[str, Any] = {"width": 64, "scene": {"seed": 7, "name": "é"}, "tags": ["a", None, True]}
ORDER = statement.Order(
    b"r" * 16,
    CUSTOMER.public,
    MARKET.public,
    statement.challenge_type_hash("rendering"),
    payload_digest(PAYLOAD),
    10_000_000,
    1_800_000_000_000,
)
TASK = ORDER.task_id(CHAIN)
OTHER_LEAVES = [merkle.leaf_hash(bytes([i]) * 3) for i in range(10)]


def among(leaf: bytes, position: int, count: int) -> tuple[bytes, tuple[bytes, ...]]:
    """A tree of `count` leaves with `leaf` at `position`: its root and the leaf's path."""
    leaves = OTHER_LEAVES[:count]
    leaves[position] = leaf
    return merkle.root(leaves), tuple(merkle.inclusion_path(leaves, position))


def header(height: int, transaction: bytes, compute_root: bytes = b"c" * 32) -> tuple[bytes, tuple[bytes, ...]]:
    """A block of four transactions whose second this is, and the transaction's path."""
    tx_root, path = among(merkle.leaf_hash(transaction), 1, 4)
    chain = statement.chain_hash(CHAIN)
    packed = statement.Header(
        chain, height, b"b" * 32, 1_700_000_000_000, tx_root, compute_root, b"y" * 32, 4, 9).pack()
    return packed, path


def assignment(orchestrator: identity.PrivateKey, epoch: int, **changes: Any) -> SignedAssignment:
    fixed = {"task_id": TASK, "orchestrator_key": orchestrator.public, "epoch": epoch, "jobs": 2}
    packed = statement.Assignment(**{**fixed, **changes}).pack()
    tx_id = bytes([epoch]) * 16
    digest = statement.transaction_digest("assign", CHAIN, tx_id, packed)
    signature = MARKET.sign(digest)
    block, path = header(min(epoch, 2), digest + signature)
    return SignedAssignment(packed, tx_id, signature, block, 1, path)


def evidence(job: int, orchestrator: identity.PrivateKey, epoch: int, chain: str = CHAIN) -> JobEvidence:
    """The evidence of one job, but for its block's place in the log."""
    result_hash, nonce = sha256(bytes([job])).digest(), 100 + job
    commitment = statement.Commitment(TASK, job, epoch, 1, WORKER.public, result_hash, nonce).pack()
    root, path = among(merkle.leaf_hash(commitment), 2, 5)
    body = statement.commitments_body(5, root)
    bound = statement.authorisation(orchestrator.public, root, 2)
    result = statement.Result(TASK, job, WORKER.public, result_hash, b"p" * 32, nonce, bound).pack()
    settle_root, settle_path = among(merkle.leaf_hash(result), 1, 7)
    digest = statement.transaction_digest("settle", chain, b"s" * 16, statement.settle_body(7, settle_root))
    compute_root, compute_path = among(merkle.leaf_hash(result), 8, 9)
    settle_signature = orchestrator.sign(digest)
    block, settle_tx_path = header(3 + job, digest + settle_signature, compute_root)
    return JobEvidence(
        result=result,
        commitment=commitment,
        commitment_position=2,
        commitment_count=5,
        commitment_path=path,
        worker_signature=envelope.sign(WORKER, "commitment", chain, body),
        orchestrator_key=orchestrator.public,
        settle_id=b"s" * 16,
        settle_count=7,
        settle_position=1,
        settle_path=settle_path,
        settle_signature=settle_signature,
        header=block,
        leaf_index=8,
        compute_path=compute_path,
        header_path=(),
        settle_index=1,
        settle_tx_path=settle_tx_path,
    )


def build(jobs: list[JobEvidence], *assignments: SignedAssignment, origin: str = LOG.name) -> Receipt:
    headers = OTHER_LEAVES[:7]
    for one in (*jobs, *assignments):
        headers[statement.Header.unpack(one.header).height] = merkle.leaf_hash(one.header)
    tree = merkle.Tree(headers)

    def placed(one: Any) -> Any:
        return replace(one, header_path=tuple(tree.path(statement.Header.unpack(one.header).height)))

    return Receipt(
        chain=CHAIN,
        vkey=LOG.vkey,
        challenge_type="rendering",
        payload=PAYLOAD,
        order=ORDER.pack(),
        customer_signature=CUSTOMER.sign(TASK),
        assignments=tuple(map(placed, assignments)),
        jobs=tuple(map(placed, jobs)),
        checkpoint=sign_note(Checkpoint(origin, 7, tree.root).body(), LOG),
    )


GOOD = build([evidence(0, FIRST, 1), evidence(1, FIRST, 1)], assignment(FIRST, 1))


def failed(changed: Receipt) -> set[str]:
    return {check.name for check in verify(changed, LOG.vkey) if not check.ok}


def test_a_true_receipt_holds_step_by_step() -> None:
    checks = verify(GOOD, LOG.vkey)
    assert accepted(checks), [check for check in checks if not check.ok]
    assert len(checks) == 6 + 1 + 2 * 8
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.detail for check in checks)


def test_json_form_round_trips() -> None:
    text = GOOD.to_json()
    assert Receipt.from_json(text) == GOOD
    assert Receipt.from_json(text.encode()) == GOOD
    assert Receipt.from_json(text).to_json() == text


def test_without_a_trusted_key_the_receipts_own_is_named_as_such() -> None:
    checks = verify(GOOD)
    assert accepted(checks)
    assert "not known to be the log's" in checks[-1].detail
    assert "not known" not in verify(GOOD, LOG.vkey)[-1].detail


def test_another_logs_key_is_refused() -> None:
    impostor = NoteSigner(LOG.name, sha256(b"impostor").digest())
    forged = replace(GOOD, vkey=impostor.vkey, checkpoint=sign_note(_checkpoint_text(GOOD), impostor))
    assert accepted(verify(forged))
    assert "checkpoint" in failed(forged)


def test_the_receipt_must_name_the_trusted_key_and_no_other() -> None:
    for at in range(len(LOG.vkey)):
        changed = LOG.vkey[:at] + chr(ord(LOG.vkey[at]) ^ 1) + LOG.vkey[at + 1 :]
        assert failed(replace(GOOD, vkey=changed)) == {"log key"}
    assert "log key" not in {check.name for check in verify(GOOD)}


def _checkpoint_text(whole: Receipt) -> str:
    return whole.checkpoint.split("\n\n")[0] + "\n"


def tamperings(value: Any) -> Iterator[Any]:
    if isinstance(value, bytes):
        for at in {0, len(value) // 3, len(value) // 2, len(value) - 1}:
            yield value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        yield bytes(len(value))
        yield value[:-1]
        yield b""
    elif isinstance(value, int):
        yield from {value + 1, max(value - 1, 0), 2**32 - 1, value + 8} - {value}
    elif isinstance(value, tuple):
        yield value[1:]
        yield (*value, bytes(32))
        yield (bytes(32), *value[1:])
        yield tuple(reversed(value)) if len(value) > 1 else ()


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", [field.name for field in fields(JobEvidence)])
def test_no_field_of_a_job_can_be_changed(name: str, position: int) -> None:
    job = GOOD.jobs[position]
    tried = 0
    for other in tamperings(getattr(job, name)):
        jobs = [*GOOD.jobs]
        jobs[position] = replace(job, **{name: other})
        assert failed(replace(GOOD, jobs=tuple(jobs))), f"{name} = {other!r}"
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize("name", [field.name for field in fields(SignedAssignment)])
def test_no_field_of_an_assignment_can_be_changed(name: str) -> None:
    steps = {"assignments"} if name in ("assignment", "tx_id", "signature") else {"assignments[0].transaction"}
    for other in tamperings(getattr(GOOD.assignments[0], name)):
        if name == "header" and not other:
            continue  # no header is the first format, which a file cannot mix with the second
        changed = replace(GOOD, assignments=(replace(GOOD.assignments[0], **{name: other}),))
        assert steps <= failed(changed), f"{name} = {other!r}"


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("chain", "computemesh-other", "order"),
        ("chain", "\ud800", "order"),
        ("challenge_type", "rendering2", "payload"),
        ("challenge_type", "\ud800", "payload"),
        ("payload", {**PAYLOAD, "width": 65}, "payload"),
        ("payload", {**PAYLOAD, "more": 1}, "payload"),
        ("payload", {"width": float("nan")}, "payload"),
        ("payload", {}, "payload"),
        ("order", ORDER.pack()[:-1] + b"\x01", "order"),
        ("order", replace(ORDER, reward_units=1).pack(), "order"),
        ("order", b"", "order"),
        ("customer_signature", STRANGER.sign(TASK), "order"),
        ("customer_signature", b"", "order"),
        ("assignments", (), "assignments"),
        ("jobs", (), "jobs"),
        ("jobs", GOOD.jobs[:1], "jobs"),
        ("jobs", (GOOD.jobs[0], GOOD.jobs[0]), "jobs"),
        ("jobs", (*GOOD.jobs, GOOD.jobs[1]), "jobs"),
        ("checkpoint", "", "checkpoint"),
        ("checkpoint", GOOD.checkpoint.replace("\n7\n", "\n8\n"), "checkpoint"),
    ],
)
def test_no_field_of_the_task_can_be_changed(name: str, value: Any, step: str) -> None:
    assert step in failed(replace(GOOD, **{name: value}))


def test_payload_may_be_written_another_way() -> None:
    rewritten = {"tags": ["a", None, True], "scene": {"name": "é", "seed": 7.0}, "width": 64.0}
    assert not failed(replace(GOOD, payload=rewritten))


def test_an_assignment_must_be_the_markets() -> None:
    signed = GOOD.assignments[0]
    digest = statement.transaction_digest("assign", CHAIN, signed.tx_id, signed.assignment)
    forged = replace(signed, signature=STRANGER.sign(digest))
    assert failed(replace(GOOD, assignments=(forged,))) == {"assignments", "assignments[0].transaction"}


def test_a_job_counts_for_the_orchestrator_assigned_in_its_epoch_only() -> None:
    handed_over = (assignment(FIRST, 1), assignment(SECOND, 4))
    jobs = [evidence(0, FIRST, 3), evidence(1, SECOND, 4)]
    assert not failed(build(jobs, *handed_over))
    assert not failed(build(jobs, *reversed(handed_over)))
    late = build([evidence(0, FIRST, 4), evidence(1, SECOND, 4)], *handed_over)
    assert failed(late) == {"jobs[0].orchestrator"}
    early = build([evidence(0, FIRST, 3), evidence(1, SECOND, 3)], *handed_over)
    assert failed(early) == {"jobs[1].orchestrator"}
    before = build([evidence(0, FIRST, 0), evidence(1, FIRST, 1)], assignment(FIRST, 1))
    assert failed(before) == {"jobs[0].orchestrator"}


@pytest.mark.parametrize(
    "assignments",
    [
        (assignment(FIRST, 1), assignment(SECOND, 4, jobs=3)),
        (assignment(FIRST, 1), assignment(SECOND, 1)),
        (assignment(FIRST, 1, task_id=bytes(32)),),
    ],
    ids=["other division", "same epoch", "other task"],
)
def test_contradicting_assignments_are_refused(assignments: tuple[SignedAssignment, ...]) -> None:
    assert "assignments" in failed(replace(GOOD, assignments=assignments))


def test_a_settlement_by_a_stranger_is_refused() -> None:
    jobs = [evidence(0, STRANGER, 1), evidence(1, FIRST, 1)]
    assert failed(build(jobs, assignment(FIRST, 1))) == {"jobs[0].orchestrator"}


def test_signatures_for_another_chain_are_refused() -> None:
    jobs = [evidence(0, FIRST, 1, chain="computemesh-other"), evidence(1, FIRST, 1)]
    assert failed(build(jobs, assignment(FIRST, 1))) == {
        "jobs[0].worker_signature", "jobs[0].settlement", "jobs[0].transaction"}  # fmt: skip


def test_another_logs_checkpoint_is_refused() -> None:
    jobs = [evidence(0, FIRST, 1), evidence(1, FIRST, 1)]
    foreign = build(jobs, assignment(FIRST, 1), origin="computemesh-other/blocks")
    assert failed(foreign) == {"assignments[0].transaction", "jobs[0].log", "jobs[1].log", "checkpoint"}


def test_verify_says_nothing_holds_for_no_checks() -> None:
    assert not accepted([])


def mutate(change: Any) -> str:
    document = json.loads(GOOD.to_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda d: d.pop("order"), "receipt.order"),
        (lambda d: d.update(more=1), "receipt.more"),
        (lambda d: d.update(format="computemesh.receipt.v3"), "format"),
        (lambda d: d.update(partial=0), "partial"),
        (lambda d: d["assignments"][0].update(header=""), "assignments[0].header"),
        (lambda d: d.update(chain=7), "chain"),
        (lambda d: d.update(checkpoint=None), "checkpoint"),
        (lambda d: d.update(payload=[]), "payload"),
        (lambda d: d.update(order=d["order"][:-2]), "order"),
        (lambda d: d.update(order=d["order"].upper()), "order"),
        (lambda d: d.update(order="zz" * 164), "order"),
        (lambda d: d.update(jobs={}), "jobs"),
        (lambda d: d.update(jobs=[1]), "jobs[0]"),
        (lambda d: d["jobs"][1].pop("header"), "jobs[1].header"),
        (lambda d: d["jobs"][1].update(extra=1), "jobs[1].extra"),
        (lambda d: d["jobs"][1].update(result=5), "jobs[1].result"),
        (lambda d: d["jobs"][1].update(leaf_index=-1), "jobs[1].leaf_index"),
        (lambda d: d["jobs"][1].update(leaf_index=2**32), "jobs[1].leaf_index"),
        (lambda d: d["jobs"][1].update(leaf_index=1.0), "jobs[1].leaf_index"),
        (lambda d: d["jobs"][1].update(leaf_index=True), "jobs[1].leaf_index"),
        (lambda d: d["jobs"][0].update(settle_path="00"), "jobs[0].settle_path"),
        (lambda d: d["jobs"][0].update(settle_path=["00"]), "jobs[0].settle_path[0]"),
        (lambda d: d["jobs"][0].update(settle_path=["00" * 32] * 65), "jobs[0].settle_path"),
        (lambda d: d["assignments"][0].update(tx_id=""), "assignments[0].tx_id"),
    ],
)
def test_malformed_file_is_refused_by_field(change: Any, path: str) -> None:
    with pytest.raises(InvalidProof) as caught:
        Receipt.from_json(mutate(change))
    assert caught.value.violations[0][0] == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        b"\xff\xfe\x00",
        "[" * 100_000,
        '{"format": NaN}',
        '{"chain": "a", "chain": "b"}',
        "9" * 5000,
        '{"a": Infinity}',
    ],
)
def test_garbage_files_are_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidProof):
        Receipt.from_json(text)


def test_a_file_beyond_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    from computemesh.trust import receipt_json

    monkeypatch.setattr(receipt_json, "MAX_BYTES", 100)
    with pytest.raises(InvalidProof, match="longer"):
        Receipt.from_json(GOOD.to_json())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.text(max_size=5) | st.just("00" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([field.name for field in fields(Receipt)]), JSON)
def test_any_json_in_any_field_is_refused_or_fails_a_step(name: str, value: Any) -> None:
    try:
        changed = Receipt.from_json(mutate(lambda document: document.update({name: value})))
    except InvalidProof:
        return
    assert changed == GOOD or name == "vkey" or failed(changed)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([field.name for field in fields(JobEvidence)]), JSON)
def test_any_json_in_any_job_field_is_refused_or_fails_a_step(name: str, value: Any) -> None:
    try:
        changed = Receipt.from_json(mutate(lambda document: document["jobs"][0].update({name: value})))
    except InvalidProof:
        return
    assert changed == GOOD or failed(changed)


def test_receipt_module_and_its_json_name_one_class() -> None:
    assert type(Receipt.from_json(GOOD.to_json())) is receipt.Receipt
