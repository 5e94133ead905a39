"""The legacy view: bit for bit the L1's root, and malleable like it."""

from __future__ import annotations

from hashlib import sha256

import pytest

from computemesh.trust.computechain import poc_leaf, poc_root
from computemesh.trust.errors import InvalidArgument

LEAVES = [sha256(bytes([i])).digest() for i in range(5)]
RESULT = {
    "nonce": 7,
    "task_id": "t",
    "worker_address": "cpc1é",
    "result_hash": "ab",
    "proof": None,
    "signature": "s",
    "other": 1,
}


def test_roots_are_the_known_ones() -> None:
    assert poc_root(LEAVES[:3]) == "f2dcdd96791b6bac5d554f2d320e594b834f5da1981812c3707e7772234cb0ad"
    assert poc_root(LEAVES) == "9674600fd139741c0f7dd7a32d984a0e74401cc90e6e8e5d203ed973d27324fe"


def test_no_leaf_is_the_empty_text_and_one_leaf_its_own_root() -> None:
    assert poc_root([]) == ""
    assert poc_root(LEAVES[:1]) == LEAVES[0].hex()


def test_two_lists_share_a_root_which_is_why_it_is_never_trusted() -> None:
    assert poc_root(LEAVES[:3]) == poc_root([*LEAVES[:3], LEAVES[2]])


def test_leaf_is_compact_raw_json_in_field_order() -> None:
    text = (
        '{"task_id":"t","worker_address":"cpc1é","result_hash":"ab","proof":null,"nonce":7,"signature":"s"}'
    )
    assert poc_leaf(RESULT) == sha256(text.encode()).digest()


def test_missing_or_unencodable_fields_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="signature is missing"):
        poc_leaf({key: value for key, value in RESULT.items() if key != "signature"})
    for bad in (b"bytes", float("nan"), "\ud800"):
        with pytest.raises(InvalidArgument):
            poc_leaf({**RESULT, "proof": bad})
