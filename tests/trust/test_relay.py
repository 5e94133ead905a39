"""The bridge to ComputeChain: its hash and signature, and a file that says nothing our own log does not."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import coincurve
import pytest

from computemesh.trust import computechain, merkle, relay, statement
from computemesh.trust.checkpoint import Checkpoint, NoteSigner, log_origin, sign_note
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.identity import PrivateKey
from computemesh.trust.receipt import accepted

CHAIN = "computemesh-test"
WORKERS = [PrivateKey.from_bytes(number.to_bytes(32, "big")) for number in (7, 8)]
LOG = NoteSigner(log_origin(CHAIN), bytes(range(32)))


def block(count: int, **options: Any) -> relay.Relay:
    """The relay of a block of that many results of two workers, second in a log of three."""
    results = []
    for job in range(count):
        worker = WORKERS[job % 2]
        packed = statement.Result(
            b"t" * 32, job, worker.public, sha256(bytes([job])).digest(), b"p" * 32, job + 1, b"a" * 32).pack()
        view = {"task_id": (b"t" * 32).hex(), "worker_address": worker.address,
                "result_hash": sha256(bytes([job])).hexdigest(), "proof": (b"p" * 32).hex(), "nonce": job + 1,
                "signature": bytes(64).hex(), "job": job}  # fmt: skip
        results.append((packed, view))
    root = merkle.root([merkle.leaf_hash(one) for one, _ in results])
    headers = [statement.Header(statement.chain_hash(CHAIN), height, bytes(32), 1, bytes(32), root, bytes(32), 1, count)
               .pack() for height in range(3)]  # fmt: skip
    tree = merkle.Tree([merkle.leaf_hash(one) for one in headers])
    note = sign_note(Checkpoint(LOG.name, 3, tree.root).body(), LOG)
    chosen: dict[str, Any] = {"keys": WORKERS, "nonces": {}, "gas_price": 1000} | options
    return relay.build(CHAIN, headers[1], tree.path(1), note, results, **chosen)


def problems(found: relay.Relay) -> str:
    return "; ".join(f"{one.name}: {one.detail}" for one in relay.check(found, LOG.vkey) if not one.ok)


def changed(found: relay.Relay, at: int, **fields: Any) -> relay.Relay:
    """With other fields in a transaction, signed again by its worker."""
    one = {**found.transactions[at], **fields, "signature": ""}
    one = computechain.signed(one, next(key for key in WORKERS if key.public.hex() == one["pub_key"]))
    return replace(found, transactions=(*found.transactions[:at], one, *found.transactions[at + 1 :]))


def test_hash_and_signature_are_computechains() -> None:
    """The text is written out here as protocol/types/tx.py joins it, and another library checks the signature."""
    one = block(1, nonces={WORKERS[0].address: 41}).transactions[0]
    address, key = WORKERS[0].address, WORKERS[0].public.hex()
    payload = one["payload"]
    text = (
        f"SUBMIT_RESULT{address}0" + "80000000" + "41" + "1000" + "80000"
        + f'{{"nonce":1,"proof":"{payload["proof"]}","result_hash":"{payload["result_hash"]}",'
        + f'"signature":"{payload["signature"]}","task_id":"{payload["task_id"]}","worker_address":"{address}"}}'
        + key
    )
    digest = sha256(text.encode()).digest()
    assert computechain.transaction_hash(one) == digest
    raw = bytes.fromhex(one["signature"])
    assert int.from_bytes(raw[32:], "big") <= 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2
    der = coincurve.ecdsa.cdata_to_der(coincurve.ecdsa.deserialize_compact(raw))
    assert coincurve.verify_signature(der, digest, WORKERS[0].public, hasher=None)
    assert (one["gas_limit"], one["fee"]) == (80_000, 80_000 * one["gas_price"])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_block_goes_out_and_is_accepted_at_import(count: int) -> None:
    found = block(count, nonces={WORKERS[1].address: 9})
    again = relay.Relay.from_json(found.to_json())
    assert again == found
    assert accepted(relay.check(again, LOG.vkey)), problems(again)
    assert [one["nonce"] for one in found.transactions] == [0, 9, 1, 10, 2][:count]
    leaves = [computechain.poc_leaf(one["payload"]) for one in found.transactions]
    assert json.loads(found.to_json())["legacy_poc_root"] == computechain.poc_root(leaves)


def test_a_repeated_end_has_the_same_legacy_root_and_is_refused() -> None:
    """CVE-2012-2459, which is why the legacy root is never what decides."""
    found = block(3)
    longer = replace(
        found, results=(*found.results, found.results[2]), transactions=(*found.transactions, found.transactions[2]))
    assert longer.legacy_root == found.legacy_root
    assert "results: 4 results, the block has 3" in problems(longer)


def test_results_left_out_or_in_another_order_are_refused() -> None:
    found = block(3)
    fewer = replace(found, results=found.results[:2], transactions=found.transactions[:2])
    assert "2 results, the block has 3" in problems(fewer)
    swapped = replace(found, results=found.results[::-1], transactions=found.transactions[::-1])
    assert "not those of the block's compute root" in problems(swapped)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"gas_limit": 79_999}, "gas_limit is 79999, must be 80000"),
        ({"fee": 80_000_001}, "fee is 80000001, must be 80000000"),
        ({"amount": 1}, "amount is 1, must be 0"),
        ({"amount": False}, "types"),
        ({"to_address": WORKERS[1].address}, "to_address is"),
        ({"from_address": WORKERS[1].address}, "from_address is"),
        ({"tx_type": "TRANSFER"}, "tx_type is"),
        ({"gas_price": 0, "fee": 0}, "gas_price is 0"),
        ({"nonce": -1}, "nonce is -1"),
        ({"nonce": 5}, "after"),
        ({"memo": "x"}, "fields"),
    ],
)
def test_a_changed_transaction_is_refused_though_it_is_signed(fields: dict[str, Any], problem: str) -> None:
    assert problem in problems(changed(block(4), 2, **fields))


@pytest.mark.parametrize("name", ["task_id", "worker_address", "result_hash", "proof", "nonce"])
def test_a_payload_that_is_not_the_blocks_result_is_refused(name: str) -> None:
    found = block(4)
    payload = found.transactions[1]["payload"]
    other = {**payload, name: 99 if name == "nonce" else WORKERS[0].address if name == "worker_address" else "00" * 32}
    assert f"transactions[1]: payload.{name} is" in problems(changed(found, 1, payload=other))


def test_unsigned_and_wrongly_signed_transactions_are_named() -> None:
    assert f"unsigned: {WORKERS[1].address}" in problems(block(3, keys=WORKERS[:1]))
    found = block(2)
    mixed = {**found.transactions[0], "signature": found.transactions[1]["signature"]}
    assert "not pub_key's" in problems(replace(found, transactions=(mixed, found.transactions[1])))
    with pytest.raises(InvalidArgument, match="cannot sign for"):
        computechain.signed(found.transactions[0], WORKERS[1])


def test_another_logs_key_header_or_chain_is_refused() -> None:
    found = block(2)
    assert not accepted(relay.check(found, NoteSigner(LOG.name, bytes(32)).vkey))
    other = statement.Header.unpack(found.header)
    assert "log: the block is not in the checkpoint's tree" in problems(
        replace(found, header=replace(other, time_ms=2).pack()))
    assert "log: " in problems(replace(found, chain="another"))


def test_a_file_has_one_encoding() -> None:
    text = block(2).to_json()
    document = json.loads(text)
    others = {
        "spaces": json.dumps(document),
        "order": json.dumps(dict(reversed(document.items())), indent=1) + "\n",
        "a field more": json.dumps({**document, "note": 1}, indent=1) + "\n",
        "upper case": text.replace(document["header"], document["header"].upper()),
        "root": text.replace(document["legacy_poc_root"], "00" * 32),
        "gas": text.replace('"gas": 160000', '"gas": 80000'),
        "repeated key": text.replace('"format"', '"format": "x", "format"', 1),
        "number form": text.replace('"amount": 0', '"amount": 0e0'),
        "no JSON": text[:-9],
        "a list": "[]",
    }
    for what, other in others.items():
        assert other != text, what
        with pytest.raises(InvalidProof, match="relay file"):
            relay.Relay.from_json(other)
