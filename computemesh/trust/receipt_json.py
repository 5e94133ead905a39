"""The JSON form of a receipt: strict, so that two readers of one file see the same receipt.

Unknown fields, repeated keys, upper-case hex and non-finite numbers are refused: none of them is covered by
a signature, so a reader could be shown something the evidence does not say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeGuard

from computemesh.trust import statement
from computemesh.trust.errors import InvalidProof
from computemesh.trust.receipt import JobEvidence, Receipt, SignedAssignment
from computemesh.trust.statement import ASSIGNMENT_SIZE, COMMITMENT_SIZE, HEADER_SIZE, RESULT_SIZE

FORMAT = "computemesh.receipt.v2"
FIRST_FORMAT = "computemesh.receipt.v1"
_SECOND = {
    Receipt: {"partial", "orders_id", "orders_count", "orders_position", "orders_path"},
    SignedAssignment: {"header", "tx_index", "tx_path", "header_path"}, JobEvidence: {"settle_index", "settle_tx_path"},
}  # fmt: skip
"""What the first format does not have. It is read for those who kept such receipts, and no longer issued."""
MAX_BYTES = 64 * 2**20
MAX_PATH = 64

_SIZES = {
    "customer_signature": 64,
    "assignment": ASSIGNMENT_SIZE, "tx_id": 16, "signature": 64,
    "result": RESULT_SIZE, "commitment": COMMITMENT_SIZE, "worker_signature": 64, "orchestrator_key": 33,
    "settle_id": 16, "settle_signature": 64, "header": HEADER_SIZE,
}  # fmt: skip


def dump(receipt: Receipt) -> str:
    """The receipt as indented JSON; in the first format only what was read in it."""
    first = not receipt.shows_transactions and not receipt.partial
    document = {"format": FIRST_FORMAT if first else FORMAT, **_plain(receipt, first)}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(record: Receipt | SignedAssignment | JobEvidence, first: bool) -> dict[str, Any]:
    return {name: _plain_value(getattr(record, name), first) for name in _names(type(record), first)}


def _plain_value(value: Any, first: bool) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain_value(item, first) for item in value]
    if isinstance(value, SignedAssignment | JobEvidence):
        return _plain(value, first)
    return dict(value) if isinstance(value, Mapping) else value


def load(text: str | bytes) -> Receipt:
    """Read a receipt. Raises InvalidProof naming the field, whatever the input."""
    if len(text) > MAX_BYTES:
        raise _bad("receipt", f"is longer than {MAX_BYTES} bytes")
    try:
        raw = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _bad("receipt", f"is not JSON: {error}") from None
    first = isinstance(raw, dict) and raw.get("format") == FIRST_FORMAT
    document = _object(raw, "receipt", {"format", *_names(Receipt, first)})
    if document["format"] not in (FORMAT, FIRST_FORMAT):
        raise _bad("format", f"is not {FORMAT} or {FIRST_FORMAT}")
    if not isinstance(document.get("partial", False), bool):
        raise _bad("partial", "is not true or false")
    if not isinstance(document["payload"], dict):
        raise _bad("payload", "is not an object")
    return Receipt(
        chain=_text(document, "chain"),
        vkey=_text(document, "vkey"),
        challenge_type=_text(document, "challenge_type"),
        payload=document["payload"],
        order=_order(document["order"]),
        customer_signature=_bytes(document["customer_signature"], "customer_signature", 64),
        assignments=tuple(
            SignedAssignment(**_record(item, f"assignments[{at}]", SignedAssignment, first))
            for at, item in enumerate(_list(document["assignments"], "assignments"))
        ),
        jobs=tuple(
            JobEvidence(**_record(item, f"jobs[{at}]", JobEvidence, first))
            for at, item in enumerate(_list(document["jobs"], "jobs"))
        ),
        checkpoint=_text(document, "checkpoint"),
        **({} if first else _second(document)),
    )


def _second(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a receipt that the first format lacks."""
    alone = document["orders_id"] == ""
    return {
        "partial": document["partial"],
        "orders_id": b"" if alone else _bytes(document["orders_id"], "orders_id", 16),
        "orders_count": _count(document["orders_count"], "orders_count"),
        "orders_position": _count(document["orders_position"], "orders_position"),
        "orders_path": _hashes(document["orders_path"], "orders_path"),
    }


def _order(value: Any) -> bytes:
    size = statement.order_size(bytes.fromhex(value[:2])) if _lower_hex(value) and len(value) > 1 else 0
    return _bytes(value, "order", size or statement.ORDER_SIZE)


def _names(kind: type[Receipt | SignedAssignment | JobEvidence], first: bool) -> dict[str, Any]:
    """Fields of a record with their annotations, in the first format or the present one."""
    return {field.name: field.type for field in fields(kind) if not first or field.name not in _SECOND[kind]}


def _bad(path: str, problem: str) -> InvalidProof:
    return InvalidProof(f"{path} {problem}", violations=[(path, problem)])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("an object repeats a key")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _object(value: Any, path: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(path, "is not an object")
    for name in sorted(names - value.keys()):
        raise _bad(f"{path}.{name}", "is missing")
    for name in sorted(value.keys() - names):
        raise _bad(f"{path}.{name[:40]}", "is not a field of a receipt")
    return value


def _record(value: Any, path: str, kind: type[SignedAssignment | JobEvidence], first: bool) -> dict[str, Any]:
    names = _names(kind, first)
    document = _object(value, path, set(names))
    out: dict[str, Any] = {}
    for name, annotation in names.items():
        item, where = document[name], f"{path}.{name}"
        if annotation == "bytes":
            out[name] = _bytes(item, where, _SIZES[name])
        elif annotation == "int":
            out[name] = _count(item, where)
        else:
            out[name] = _hashes(item, where)
    return out


def _hashes(value: Any, path: str) -> tuple[bytes, ...]:
    hashes = _list(value, path)
    if len(hashes) > MAX_PATH:
        raise _bad(path, f"has more than {MAX_PATH} hashes")
    return tuple(_bytes(one, f"{path}[{at}]", 32) for at, one in enumerate(hashes))


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(path, "is not a list")
    return value


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document[name]
    if not isinstance(value, str):
        raise _bad(name, "is not text")
    return value


def _count(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise _bad(path, "is not an integer 0..2^32-1")
    return value


def _lower_hex(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and all(c in "0123456789abcdef" for c in value)


def _bytes(value: Any, path: str, size: int) -> bytes:
    if not _lower_hex(value) or len(value) != 2 * size:
        raise _bad(path, f"is not {size} bytes of lower-case hex")
    return bytes.fromhex(value)
