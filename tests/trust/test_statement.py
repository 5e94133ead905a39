"""Statements: one length, one encoding, every byte means something."""

from __future__ import annotations

import struct
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh.trust import envelope, identity, merkle, statement
from computemesh.trust.amount import MAX_UNITS
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.results import result_leaves
from computemesh.trust.statement import Assignment, Commitment, Header, Order, Result

CHAIN = "computemesh-test"
KEY = identity.PrivateKey(sha256(b"worker").digest())
U8, U32, U64 = st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
H, K = st.binary(min_size=32, max_size=32), st.binary(min_size=33, max_size=33)

ORDERS = st.builds(
    Order, st.binary(min_size=16, max_size=16), K, K, H, H, st.integers(0, MAX_UNITS), U64, st.integers(0, 9)
)
ASSIGNMENTS = st.builds(Assignment, H, K, U32, st.integers(1, 2**32 - 1))
COMMITMENTS = st.builds(Commitment, H, U32, U32, U32, K, H, U64)
RESULTS = st.builds(Result, H, U32, K, H, H, U64, H)
HEADERS = st.builds(Header, H, U64, H, U64, H, H, H, U32, U32)

SAMPLES: list[Any] = [
    Order(b"r" * 16, b"c" * 33, b"m" * 33, b"t" * 32, b"p" * 32, 10_000_000, 1_700_000_000_000, 9),
    Assignment(b"t" * 32, b"o" * 33, 3, 4),
    Commitment(b"t" * 32, 1, 3, 1, KEY.public, b"h" * 32, 77),
    Result(b"t" * 32, 1, KEY.public, b"h" * 32, b"p" * 32, 77, b"a" * 32),
    Header(b"c" * 32, 5, b"b" * 32, 1_700_000_000_000, b"t" * 32, b"r" * 32, b"s" * 32, 2, 3),
]
SIZES = {Order: 164, Assignment: 74, Commitment: 118, Result: 174, Header: 185}


def batch(count: int) -> bytes:
    return b"".join(replace(SAMPLES[2], job=job, nonce=job).pack() for job in range(count))


def plain_fields(value: Any) -> list[Any]:
    """The fields of the layout itself; an order's terms are held by tests/trust/test_acts.py."""
    return [field for field in fields(value) if field.name != "terms"]


@given(ORDERS | ASSIGNMENTS | COMMITMENTS | RESULTS | HEADERS)
def test_statement_round_trips_in_its_one_length(value: Any) -> None:
    packed = value.pack()
    assert len(packed) == SIZES[type(value)]
    assert type(value).unpack(packed) == value
    assert packed[0] == 1


@pytest.mark.parametrize("value", SAMPLES)
def test_other_lengths_and_versions_are_refused_by_field(value: Any) -> None:
    kind, packed = type(value).__name__.lower(), value.pack()
    for bad in (b"", packed[:-1], packed + b"\x00"):
        with pytest.raises(InvalidProof) as caught:
            type(value).unpack(bad)
        assert caught.value.violations[0][0] == kind
    for version in (0, 3, 255):
        with pytest.raises(InvalidProof) as caught:
            type(value).unpack(bytes([version]) + packed[1:])
        assert caught.value.violations[0][0] == f"{kind}.version"


@pytest.mark.parametrize("value", SAMPLES)
def test_no_field_is_padded_cut_or_wrapped(value: Any) -> None:
    for field in plain_fields(value):
        present = getattr(value, field.name)
        wrong = [present[:-1], present + b"\x00"] if isinstance(present, bytes) else [-1, 2**64]
        for bad in wrong:
            with pytest.raises(InvalidArgument):
                replace(value, **{field.name: bad}).pack()


@pytest.mark.parametrize("value", SAMPLES)
def test_every_field_changes_the_bytes(value: Any) -> None:
    for field in plain_fields(value):
        present = getattr(value, field.name)
        other = b"\xff" * len(present) if isinstance(present, bytes) else present - 1
        assert replace(value, **{field.name: other}).pack() != value.pack()


def test_order_bounds_reward_and_priority_both_ways() -> None:
    for change in ({"reward_units": MAX_UNITS + 1}, {"priority": 10}):
        bad = replace(SAMPLES[0], **change)
        with pytest.raises(InvalidArgument):
            bad.pack()
        raw = bytearray(SAMPLES[0].pack())
        struct.pack_into(">Q", raw, 164 - 17, bad.reward_units)
        raw[-1] = bad.priority
        with pytest.raises(InvalidProof, match=next(iter(change))):
            Order.unpack(bytes(raw))


def test_assignment_of_no_jobs_is_refused() -> None:
    with pytest.raises(InvalidProof, match="jobs"):
        Assignment.unpack(replace(SAMPLES[1], jobs=0).pack())


def test_task_id_is_the_digest_the_customer_signs() -> None:
    order = SAMPLES[0]
    assert order.task_id(CHAIN) == envelope.digest("order", CHAIN, order.pack())
    assert order.task_id(CHAIN) != order.task_id("another")
    signature = envelope.sign(KEY, "order", CHAIN, order.pack())
    assert identity.verify(KEY.public, order.task_id(CHAIN), signature)


def test_layouts_are_the_protocols() -> None:
    expected = (
        b"\x01" + b"t" * 32 + struct.pack(">III", 1, 3, 1) + KEY.public + b"h" * 32 + struct.pack(">Q", 77)
    )
    assert SAMPLES[2].pack() == expected
    expected = b"\x01" + b"t" * 32 + struct.pack(">I", 1) + KEY.public + b"h" * 32 + b"p" * 32
    assert SAMPLES[3].pack() == expected + struct.pack(">Q", 77) + b"a" * 32


def test_header_hash_is_its_rfc_9162_leaf() -> None:
    assert SAMPLES[4].block_hash == sha256(b"\x00" + SAMPLES[4].pack()).digest()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 128])
def test_one_signature_covers_a_batch(count: int) -> None:
    packed = batch(count)
    root = statement.commitment_root(packed)
    hashes = [merkle.leaf_hash(packed[at : at + 118]) for at in range(0, len(packed), 118)]
    assert root == merkle.root(hashes)
    signature = statement.sign_commitments(KEY, CHAIN, packed)
    assert envelope.verify(KEY.public, "commitment", CHAIN, struct.pack(">I", count) + root, signature)
    assert statement.verify_commitments(KEY.public, CHAIN, count, root, signature)
    assert not statement.verify_commitments(KEY.public, CHAIN, count + 1, root, signature)
    assert not statement.verify_commitments(KEY.public, "another", count, root, signature)
    assert not statement.verify_commitments(KEY.public, CHAIN, count, bytes(32), signature)


def test_rows_are_the_commitments() -> None:
    rows = list(statement.iter_commitments(batch(5)))
    assert [Commitment(*row[1:]) for row in rows] == [
        Commitment.unpack(batch(5)[at : at + 118]) for at in range(0, 590, 118)
    ]
    assert list(statement.iter_commitments(b"")) == []


@pytest.mark.parametrize("bad", [batch(2)[:-1], batch(2) + b"\x01", batch(1) + b"\x02" + batch(1)[1:]])
def test_ragged_or_mixed_batches_are_refused(bad: bytes) -> None:
    for read in (statement.iter_commitments, statement.commitment_root):
        with pytest.raises(InvalidProof):
            read(bad)


def test_authorisation_is_the_protocols_formula() -> None:
    expected = tagged("computemesh.v1/authorisation", b"o" * 33 + b"r" * 32 + b"\x00\x00\x00\x05")
    assert statement.authorisation(b"o" * 33, b"r" * 32, 5) == expected


def test_state_root_is_the_protocols_formula() -> None:
    assert statement.state_root(b"p" * 32, b"r" * 32) == tagged("computemesh.v1/state", b"p" * 32 + b"r" * 32)


def test_transaction_bodies_are_the_protocols() -> None:
    assert statement.deposit_body(b"a" * 20, 7) == b"a" * 20 + struct.pack(">Q", 7)
    assert statement.transfer_body(b"a" * 20, 7) == b"a" * 20 + struct.pack(">Q", 7)
    assert statement.refund_body(b"t" * 32, statement.CAUSE_FAILED) == b"t" * 32 + b"\x02"
    assert statement.settle_body(3, b"r" * 32) == struct.pack(">I", 3) + b"r" * 32
    assert statement.token_body(b"k" * 33, 9) == b"k" * 33 + struct.pack(">Q", 9)
    hello = statement.hello_body(b"n" * 32, b"g" * 33, b"k" * 33, b"caps")
    assert hello == b"n" * 32 + b"g" * 33 + b"k" * 33 + sha256(b"caps").digest()


def test_a_transactions_digest_is_bound_to_kind_chain_and_id() -> None:
    body = statement.deposit_body(b"a" * 20, 7)
    digest = statement.transaction_digest("deposit", CHAIN, b"i" * 16, body)
    assert digest == envelope.digest("tx/deposit", CHAIN, b"i" * 16 + body)
    # A deposit and a transfer have the same body: only the kind keeps their signatures apart.
    assert digest != statement.transaction_digest("transfer", CHAIN, b"i" * 16, body)
    assert digest != statement.transaction_digest("deposit", CHAIN, b"j" * 16, body)
    assert digest != statement.transaction_digest("deposit", "another", b"i" * 16, body)


@pytest.mark.parametrize(
    "make",
    [
        lambda: statement.deposit_body(b"a" * 19, 1),
        lambda: statement.deposit_body(b"a" * 20, -1),
        lambda: statement.deposit_body(b"a" * 20, 2**64),
        lambda: statement.refund_body(b"t" * 31, 1),
        lambda: statement.refund_body(b"t" * 32, 256),
        lambda: statement.settle_body(1, b"r" * 31),
        lambda: statement.settle_body(2**32, b"r" * 32),
        lambda: statement.transaction_digest("deposit", CHAIN, b"i" * 15, b""),
        lambda: statement.authorisation(b"o" * 32, b"r" * 32, 0),
        lambda: statement.authorisation(b"o" * 33, b"r" * 32, -1),
        lambda: statement.token_body(b"k" * 32, 0),
    ],
)
def test_fields_of_wrong_width_or_range_are_refused(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


def test_spliced_result_leaves_are_those_of_the_statements() -> None:
    rows = [Commitment(b"t" * 32, job, 3, 4, KEY.public, bytes([job]) * 32, 70 + job) for job in range(5)]
    batch, positions = b"".join(row.pack() for row in rows), [0, 2, 5, 6, 9]
    proofs = [bytes([at]) * 32 for at in range(5)]
    root = bytes(range(32))
    expected = [
        merkle.leaf_hash(Result(
            row.task_id, row.job, row.worker_key, row.result_hash, proof, row.nonce,
            statement.authorisation(KEY.public, root, position)).pack())
        for row, position, proof in zip(rows, positions, proofs, strict=True)
    ]  # fmt: skip
    assert result_leaves(KEY.public, root, batch, positions, b"".join(proofs)) == b"".join(expected)
