"""One block's results as SUBMIT_RESULT transactions for ComputeChain, and the check of such a file at import.

The file carries the evidence of our own log beside the legacy form: the result statements, the header whose
`compute_root` they give, and the header's place under a signed checkpoint. A reader believes that, and then only that
the transactions say the same. The file has one encoding, which is compared byte by byte: its JSON is canonical because
any other is refused (docs/PROTOCOL.md section 11).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from computemesh.trust import computechain, identity, merkle, statement
from computemesh.trust.checkpoint import NoteVerifier, log_origin, open_checkpoint
from computemesh.trust.errors import InvalidProof, MeshError
from computemesh.trust.receipt import Check

FORMAT = "computemesh.relay.v1"
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Relay:
    """A block for the L1. `results` are its statements in order, `transactions` one for each."""

    chain: str
    header: bytes
    header_path: tuple[bytes, ...]
    checkpoint: str
    results: tuple[bytes, ...]
    transactions: tuple[Mapping[str, Any], ...]

    @property
    def legacy_root(self) -> str:
        """ComputeChain's `compute_poc_root` of a block that holds exactly these transactions in this order."""
        return computechain.poc_root([computechain.poc_leaf(one["payload"]) for one in self.transactions])

    def to_json(self) -> str:
        """The file's one encoding."""
        document = {
            "format": FORMAT, "chain": self.chain, "header": self.header.hex(),
            "header_path": [node.hex() for node in self.header_path], "checkpoint": self.checkpoint,
            "results": [result.hex() for result in self.results], "transactions": list(self.transactions),
            "gas": computechain.SUBMIT_RESULT_GAS * len(self.transactions), "legacy_poc_root": self.legacy_root,
        }  # fmt: skip
        return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Relay:
        """Reads a file. Raises InvalidProof where it is not in its one encoding."""
        if len(text) > MAX_BYTES:
            raise InvalidProof(f"the relay file is longer than {MAX_BYTES} bytes")
        text = text.encode() if isinstance(text, str) else text
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise InvalidProof(f"format is not {FORMAT}")
            found = cls(
                document["chain"], bytes.fromhex(document["header"]),
                tuple(map(bytes.fromhex, document["header_path"])), document["checkpoint"],
                tuple(map(bytes.fromhex, document["results"])), tuple(document["transactions"]))  # fmt: skip
            again = found.to_json().encode()
        except (ValueError, TypeError, AttributeError, RecursionError, MeshError):
            raise InvalidProof("not a relay file: not JSON, or a field is not of its kind") from None
        except KeyError as error:
            raise InvalidProof(f"not a relay file: field {error} is missing") from None
        if again != text:
            raise InvalidProof("the relay file is not in its one encoding: fields, order, spaces, sums as written")
        return found


def build(
    chain: str, header: bytes, header_path: Sequence[bytes], checkpoint: str,
    results: Sequence[tuple[bytes, Mapping[str, Any]]], *, keys: Sequence[identity.PrivateKey],
    nonces: Mapping[str, int], gas_price: int,
) -> Relay:  # fmt: skip
    """The relay of a block whose `results` are (statement, ComputeResult) in order.

    Signed are those of workers whose key is among `keys`; a worker's nonces count up from `nonces[address]`, or 0.
    """
    next_nonce, own = Counter(nonces), {key.public: key for key in keys}
    transactions = []
    for packed, compute_result in results:
        worker = statement.Result.unpack(packed).worker_key
        address = identity.address_of(worker)
        one = computechain.submit_result(compute_result, worker, next_nonce[address], gas_price)
        next_nonce[address] += 1
        transactions.append(computechain.signed(one, own[worker]) if worker in own else one)
    return Relay(chain, header, tuple(header_path), checkpoint, tuple(one for one, _ in results), tuple(transactions))


def check(relay: Relay, vkey: str) -> list[Check]:
    """Every step of an import, `vkey` being the log's key as the reader knows it; never raises on the content."""
    return list(_steps(relay, vkey))


def _step(name: str, judge: Callable[[], str]) -> Check:
    try:
        return Check(name, True, judge())
    except (MeshError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Check(name, False, str(error) or type(error).__name__)


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidProof(problem)


def _steps(relay: Relay, vkey: str) -> Iterator[Check]:
    yield _step("log", lambda: _log(relay, vkey))
    yield _step("results", lambda: _results(relay))
    for at in range(min(len(relay.transactions), len(relay.results))):  # others were told of already
        yield _step(f"transactions[{at}]", partial(_transaction, relay, at))
    yield _step("nonces", lambda: _nonces(relay))
    yield _step("signatures", lambda: _signatures(relay))


def _log(relay: Relay, vkey: str) -> str:
    header = statement.Header.unpack(relay.header)
    point = open_checkpoint(relay.checkpoint, NoteVerifier(vkey), log_origin(relay.chain))
    root = merkle.root_from_path(merkle.leaf_hash(relay.header), header.height, point.size, relay.header_path)
    _need(root == point.root, "the block is not in the checkpoint's tree")
    _need(header.chain_hash == statement.chain_hash(relay.chain), "the block is of another chain")
    return f"block {header.height} is one of the log's {point.size}"


def _results(relay: Relay) -> str:
    """By our own root: it tells a list from the same list with its end repeated, which the legacy one does not."""
    header = statement.Header.unpack(relay.header)
    count = len(relay.results)
    _need(count == header.result_count, f"{count} results, the block has {header.result_count}")
    _need(count == len(relay.transactions), f"{len(relay.transactions)} transactions for {count} results")
    root = merkle.root([merkle.leaf_hash(result) for result in relay.results])
    _need(root == header.compute_root, "the results are not those of the block's compute root")
    return f"all {count} results of the block, in order"


def _transaction(relay: Relay, at: int) -> str:
    one, result = relay.transactions[at], statement.Result.unpack(relay.results[at])
    address = identity.address_of(result.worker_key)
    stated = {
        "task_id": result.task_id.hex(), "worker_address": address, "result_hash": result.result_hash.hex(),
        "proof": result.proof_hash.hex(), "nonce": result.nonce,
    }  # fmt: skip
    payload = one["payload"]
    for name, value in stated.items():
        _need(payload[name] == value, f"payload.{name} is {payload[name]!r}, the block's result has {value!r}")
    _need(len(bytes.fromhex(payload["signature"])) == 64, "payload.signature is not 64 bytes of hex")
    price, nonce = one["gas_price"], one["nonce"]
    _need(type(price) is int and 0 < price < 2**63, f"gas_price is {price!r}, must be a positive integer")
    _need(type(nonce) is int and 0 <= nonce < 2**63, f"nonce is {nonce!r}, must be an integer of 0 or more")
    expected = computechain.submit_result({**payload, **stated}, result.worker_key, nonce, price)
    expected["signature"] = one["signature"]
    for name, value in expected.items():
        _need(one.get(name) == value, f"{name} is {one.get(name)!r}, must be {value!r}")
    # As text: equal values may differ in type (0, 0.0, false), and fields in order.
    _need(json.dumps(one) == json.dumps(expected), "its fields, their types or their order are not ComputeChain's")
    _need(bytes.fromhex(one["signature"]).hex() == one["signature"], "signature is not lower-case hex")
    return f"job {result.job} for {address}: {computechain.transaction_hash(one).hex()}"


def _nonces(relay: Relay) -> str:
    latest: dict[str, int] = {}
    for one in relay.transactions:
        sender, nonce = one["from_address"], one["nonce"]
        expected = latest.get(sender, nonce - 1) + 1
        _need(nonce == expected, f"{sender} has nonce {nonce} after {expected - 1}")
        latest[sender] = nonce
    return f"{len(latest)} senders, each with consecutive nonces"


def _signatures(relay: Relay) -> str:
    unsigned = {one["from_address"] for one in relay.transactions if not one["signature"]}
    for at, one in enumerate(relay.transactions):
        if one["signature"]:
            _need(computechain.verify_signature(one), f"transactions[{at}]: the signature is not pub_key's")
    _need(not unsigned, f"unsigned: {', '.join(sorted(unsigned))}; each worker's owner signs with `--key FILE`")
    return f"{len(relay.transactions)} transactions signed by their workers"
