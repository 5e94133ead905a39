"""Receipts of part of a task, of orders signed together or with terms, and of the first format."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from computemesh.trust import merkle, statement
from computemesh.trust.errors import InvalidProof
from computemesh.trust.receipt import Receipt, verify
from tests.trust.test_receipt import CHAIN, CUSTOMER, GOOD, LOG, ORDER, among, failed


def test_a_partial_receipt_says_which_jobs_it_shows_and_never_passes_for_a_whole_one() -> None:
    part = replace(GOOD, jobs=GOOD.jobs[1:], partial=True)
    assert not failed(Receipt.from_json(part.to_json()))
    said = next(check.detail for check in verify(part, LOG.vkey) if check.name == "jobs")
    assert said.startswith("PARTIAL: 1 of 2 jobs")
    for wrong in (replace(part, partial=False), replace(GOOD, partial=True), replace(part, jobs=()),
                  replace(part, jobs=(GOOD.jobs[0], GOOD.jobs[0]))):  # fmt: skip
        assert "jobs" in failed(wrong)


def batched(order: statement.Order) -> Receipt:
    """Its order as the third of five that the customer signed together."""
    packed, tx_id = order.pack(), b"o" * 16
    root, path = among(merkle.leaf_hash(packed), 2, 5)
    digest = statement.transaction_digest("orders", CHAIN, tx_id, statement.commitments_body(5, root))
    return replace(GOOD, order=packed, customer_signature=CUSTOMER.sign(digest), orders_id=tx_id, orders_count=5,
                   orders_position=2, orders_path=path)  # fmt: skip


def test_an_order_signed_in_a_batch_is_the_customers() -> None:
    batch = batched(ORDER)
    assert not failed(Receipt.from_json(batch.to_json()))
    for wrong in ({"orders_id": b"p" * 16}, {"orders_count": 6}, {"orders_position": 1}, {"orders_path": ()},
                  {"orders_id": b""}, {"customer_signature": GOOD.customer_signature}):  # fmt: skip
        assert failed(replace(batch, **wrong)) == {"order"}, wrong
    assert failed(replace(GOOD, orders_id=b"o" * 16)) == {"order"}


def test_an_order_with_terms_is_read_by_its_version() -> None:
    ordered = replace(ORDER, terms=statement.Terms(payer=b"p" * 20))
    whole = replace(GOOD, order=ordered.pack(), customer_signature=CUSTOMER.sign(ordered.task_id(CHAIN)))
    assert len(whole.order) == 222
    assert Receipt.from_json(whole.to_json()) == whole
    assert "order" not in failed(whole)
    with pytest.raises(InvalidProof, match="order is not 222 bytes"):
        Receipt.from_json(replace(whole, order=whole.order[:164]).to_json())


def first_format(whole: Receipt) -> dict[str, Any]:
    """The receipt's document as it was issued before."""
    document = json.loads(whole.to_json())
    document["format"] = "computemesh.receipt.v1"
    for name in ("partial", "orders_id", "orders_count", "orders_position", "orders_path"):
        del document[name]
    for signed in document["assignments"]:
        for name in ("header", "tx_index", "tx_path", "header_path"):
            del signed[name]
    for job in document["jobs"]:
        del job["settle_index"], job["settle_tx_path"]
    return document


def test_a_receipt_of_the_first_format_still_holds_and_stays_one() -> None:
    old = Receipt.from_json(json.dumps(first_format(GOOD)))
    assert not failed(old)
    assert json.loads(old.to_json()) == first_format(GOOD)
    assert not any(check.name.endswith(".transaction") for check in verify(old, LOG.vkey))
    mixed = {**first_format(GOOD), "format": "computemesh.receipt.v2"}
    with pytest.raises(InvalidProof, match="is missing"):
        Receipt.from_json(json.dumps(mixed))


def test_an_order_that_was_signed_alone_has_no_place_in_a_batch() -> None:
    for more in ({"orders_count": 1}, {"orders_position": 1}, {"orders_path": (bytes(32),)}):
        assert failed(replace(GOOD, **more)) == {"order"}
