"""What holds for every refusal, whatever was sent."""

from __future__ import annotations

import re

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from computemesh.service.errors import DETAILS_TRAILER
from computemesh.trust.errors import MeshError

# What our own side of a stream says when the other ended it under our write; the other's status is lost then.
OUR_SIDE = "Internal error from Core"
MAX_TEXT = 2048
"""Characters of a status text: what was sent is repeated in part only."""

FAULTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
# A stack, a path of the installation, a class of Python or of a library, an object's address, a table.
INTERNALS = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|object at 0x|<class|_pb2\b|sqlite|pydantic|numpy\.|protobuf\b|"
    r"\b(?:Key|Value|Type|Index|Attribute|Assertion|Overflow|Runtime|OS|Unicode\w*|Recursion|Import|Struct|Decode|Parse)Error\b"
)


class Broken(AssertionError):
    """A law does not hold; the text says for which input."""


def leaked(text: str, secrets: tuple[str, ...] = ()) -> str | None:
    """What a text tells of the inside; `secrets` are paths and keys that nobody is told."""
    found = INTERNALS.search(text)
    if found is not None:
        return found[0]
    return next((secret for secret in secrets if secret in text), None)


def judge(error: MeshError, what: str, sent: bytes) -> None:
    """A refusal by a parser; it may repeat what was sent. Raises Broken."""
    text = " ".join([error.message, *(f"{field} {problem}" for field, problem in error.violations)])
    if (inside := leaked(text)) is not None and inside.encode() not in sent:
        raise Broken(f"{what}: the refusal tells {inside!r}: {text[:500]}")
    if len(error.message) > MAX_TEXT:
        raise Broken(f"{what}: the refusal has {len(error.message):,} characters: {text[:200]}")


def judge_status(error: grpc.RpcError, what: str, secrets: tuple[str, ...] = ()) -> None:
    """A refusal by a service. Raises Broken."""
    code, text = error.code(), error.details() or ""
    if code in FAULTS and text != OUR_SIDE:
        raise Broken(f"{what}: {code.name}: {text[:500]}")
    if (inside := leaked(text, secrets)) is not None:
        raise Broken(f"{what}: the status tells {inside!r}: {text[:500]}")
    if len(text) > MAX_TEXT:
        raise Broken(f"{what}: the status has {len(text):,} characters: {text[:200]}")
    trailer = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_TRAILER), None)
    if trailer is None:
        return  # the transport's own: a message too large, a deadline of the caller's
    try:
        status = status_pb2.Status.FromString(trailer)
    except DecodeError:
        raise Broken(f"{what}: the details are no google.rpc.Status") from None
    info = error_details_pb2.ErrorInfo()
    if not any(packed.Unpack(info) for packed in status.details) or not info.reason:
        raise Broken(f"{what}: {code.name} without a reason: {text[:500]}")
