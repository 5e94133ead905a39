"""The legacy view: ComputeChain's `compute_poc_root` and SUBMIT_RESULT, reproduced bit for bit for relaying to that L1.

Never trust this root. It hashes leaves and nodes alike and duplicates the last node of an odd level, so
different lists share a root (CVE-2012-2459: [a, b, c] and [a, b, c, c]), and its leaves are JSON, which has
many encodings of one value. Everything this project believes goes through `merkle`.

Transactions are those of github.com/computechain/computechain, protocol/types/tx.py and protocol/crypto/keys.py at
commit 4ba0a935: their hash joins decimal numbers and text without separators, another weakness of that form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from computemesh.trust import identity
from computemesh.trust.errors import InvalidArgument

FIELDS = ("task_id", "worker_address", "result_hash", "proof", "nonce", "signature")
SUBMIT_RESULT = "SUBMIT_RESULT"
SUBMIT_RESULT_GAS = 80_000
MIN_GAS_PRICE = 1_000
"""Of ComputeChain's devnet; its other networks ask for more."""


def poc_leaf(compute_result: Mapping[str, Any]) -> bytes:
    """SHA-256 of a ComputeResult as compact raw-UTF-8 JSON in field order, 32 bytes.

    Raises InvalidArgument naming a field that is missing or that JSON cannot hold.
    """
    missing = [name for name in FIELDS if name not in compute_result]
    if missing:
        raise InvalidArgument(f"{missing[0]} is missing", violations=[(missing[0], "is required")])
    ordered = {name: compute_result[name] for name in FIELDS}
    try:
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return sha256(text.encode()).digest()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"the compute result is not JSON: {error}") from None


def poc_root(leaves: Sequence[bytes]) -> str:
    """The legacy root as lower-case hex; "" for no leaves, the leaf itself for one."""
    level = list(leaves)
    if not level:
        return ""
    while len(level) > 1:
        if len(level) & 1:
            level.append(level[-1])
        level = [sha256(level[i] + level[i + 1]).digest() for i in range(0, len(level), 2)]
    return level[0].hex()


def submit_result(
    compute_result: Mapping[str, Any], worker_key: bytes, nonce: int, gas_price: int = MIN_GAS_PRICE
) -> dict[str, Any]:
    """The unsigned SUBMIT_RESULT of a ComputeResult, its fields in ComputeChain's order.

    `worker_key` is the 33-byte key of `worker_address`, whom that L1 demands as sender; `nonce` its account's next
    there; `gas_price` in that L1's base units.
    """
    return {
        "tx_type": SUBMIT_RESULT, "from_address": compute_result["worker_address"], "to_address": None, "amount": 0,
        "fee": SUBMIT_RESULT_GAS * gas_price, "nonce": nonce, "signature": "", "pub_key": worker_key.hex(),
        "payload": {name: compute_result[name] for name in FIELDS}, "gas_price": gas_price,
        "gas_limit": SUBMIT_RESULT_GAS,
    }  # fmt: skip


def transaction_hash(transaction: Mapping[str, Any]) -> bytes:
    """What ComputeChain signs, 32 bytes: SHA-256 of the fields as text, joined; the payload as sorted ASCII JSON."""
    payload = json.dumps(transaction["payload"], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    parts = (
        transaction["tx_type"], transaction["from_address"], transaction["to_address"] or "", transaction["amount"],
        transaction["fee"], transaction["nonce"], transaction["gas_price"], transaction["gas_limit"], payload,
        transaction["pub_key"],
    )  # fmt: skip
    return sha256("".join(map(str, parts)).encode()).digest()


def signed(transaction: Mapping[str, Any], key: identity.PrivateKey) -> dict[str, Any]:
    """The transaction with its sender's signature: 64 bytes r || s, low S, as hex. Raises InvalidArgument on
    another's key.
    """
    if key.public.hex() != transaction["pub_key"]:
        raise InvalidArgument(f"the key of {key.address} cannot sign for {transaction['from_address']}")
    return {**transaction, "signature": key.sign(transaction_hash(transaction)).hex()}


def verify_signature(transaction: Mapping[str, Any]) -> bool:
    """Whether `signature` is `pub_key`'s over the transaction. Raises ValueError where they are not hex."""
    key, signature = bytes.fromhex(transaction["pub_key"]), bytes.fromhex(transaction["signature"])
    return identity.verify(key, transaction_hash(transaction), signature)
