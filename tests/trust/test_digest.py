"""The payload digest: one digest per value, one value per digest."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from computemesh.trust.digest import MAX_DEPTH, payload_digest, sha256, tagged
from computemesh.trust.errors import InvalidArgument

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
PAYLOADS = st.dictionaries(st.text(max_size=6), VALUES, max_size=5)


def normal(value: Any) -> Any:
    """The value itself, without what is only its Python form: what two equal digests must agree on."""
    if isinstance(value, dict):
        return ("struct", tuple(sorted((key, normal(item)) for key, item in value.items())))
    if isinstance(value, list):
        return ("list", tuple(normal(item) for item in value))
    if isinstance(value, bool) or value is None:
        return ("constant", repr(value))
    if isinstance(value, str):
        return ("string", value)
    return ("number", repr(float(value) + 0.0))


def test_bytes_hashed_are_the_protocols() -> None:
    number = b"\x03" + struct.pack(">d", 1.5)
    items = b"\x05\x00\x00\x00\x03" + b"\x00" + b"\x01" + b"\x02"
    text = b"\x04\x00\x00\x00\x02" + "é".encode()
    expected = (
        b"\x06\x00\x00\x00\x03"
        + (b"\x00\x00\x00\x01a" + items)
        + (b"\x00\x00\x00\x01b" + number)
        + (b"\x00\x00\x00\x02\xc3\xa9" + text)
    )
    payload = {"é": "é", "b": 1.5, "a": [None, False, True]}
    assert payload_digest(payload) == tagged("computemesh.v1/payload", expected)


@given(PAYLOADS, st.randoms())
def test_key_order_does_not_matter(payload: dict[str, Any], chance: Any) -> None:
    keys = list(payload)
    chance.shuffle(keys)
    assert payload_digest({key: payload[key] for key in keys}) == payload_digest(payload)


@given(PAYLOADS, PAYLOADS)
def test_equal_digests_are_equal_values(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (payload_digest(one) == payload_digest(other)) == (normal(one) == normal(other))


@given(PAYLOADS)
def test_digest_survives_the_wire_form(payload: dict[str, Any]) -> None:
    message = struct_pb2.Struct()
    message.update(payload)
    received = struct_pb2.Struct.FromString(message.SerializeToString())
    assert payload_digest(json_format.MessageToDict(received)) == payload_digest(payload)
    assert payload_digest(json.loads(json.dumps(payload))) == payload_digest(payload)


def test_keys_sort_by_utf8_bytes() -> None:
    # UTF-16 would order these the other way round.
    astral, high = "\U0001f600", "\uff5e"
    assert payload_digest({high: 1, astral: 2}) == payload_digest({astral: 2, high: 1})
    body = b"\x06\x00\x00\x00\x02"
    for key, value in ((high, 1.0), (astral, 2.0)):
        body += struct.pack(">I", len(key.encode())) + key.encode() + b"\x03" + struct.pack(">d", value)
    assert payload_digest({astral: 2, high: 1}) == tagged("computemesh.v1/payload", body)


def test_int_and_equal_float_are_one_number_but_not_a_bool_or_a_text() -> None:
    assert payload_digest({"n": 2}) == payload_digest({"n": 2.0})
    assert payload_digest({"n": 0.0}) == payload_digest({"n": -0.0}) == payload_digest({"n": 0})
    distinct = [1, True, "1", None, False, "", [], {}, [1], {"n": 1}, 0]
    assert len({payload_digest({"n": value}) for value in distinct}) == len(distinct)


def test_nesting_is_not_flattened() -> None:
    shapes: list[Any] = [[[], []], [[[]]], [[1], 2], [1, [2]], [1, 2], {"a": {"b": 1}}, {"a": 1, "b": 1}]
    assert len({payload_digest({"v": shape}) for shape in shapes}) == len(shapes)


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": [{"b": float("nan")}]}, "payload.a[0].b"),
        ({"a": float("inf")}, "payload.a"),
        ({"a": -float("inf")}, "payload.a"),
        ({"a": 2**53 + 1}, "payload.a"),
        ({"a": -(2**60)}, "payload.a"),
        ({"a": 10**400}, "payload.a"),
        ({"a": b"bytes"}, "payload.a"),
        ({"a": {1: 2}}, "payload.a"),
        ({"a": "\ud800"}, "payload.a"),
        ({"\ud800": 1}, "payload"),
        ([], "payload"),
    ],
)
def test_what_a_struct_cannot_hold_is_refused_by_path(payload: Any, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        payload_digest(payload)
    assert caught.value.violations[0][0] == path


def nested(depth: int, kind: type[list[Any]] | type[dict[str, Any]]) -> dict[str, Any]:
    value: Any = {} if kind is dict else []
    for _ in range(depth - 2):
        value = {"v": value} if kind is dict else [value]
    return {"v": value}


@pytest.mark.parametrize("kind", [list, dict])
def test_nesting_is_bounded(kind: Any) -> None:
    assert len(payload_digest(nested(MAX_DEPTH, kind))) == 32
    for depth in (MAX_DEPTH + 1, 50_000):
        with pytest.raises(InvalidArgument, match="deeper"):
            payload_digest(nested(depth, kind))


def test_sha256_is_sha256() -> None:
    assert sha256(b"").hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
