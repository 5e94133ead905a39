"""The contracts' own rules (`buf.validate` options), checked by protovalidate."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from computemesh.trust.errors import InvalidArgument

_validator = protovalidate.Validator()
_SHOWN = 80


def _value_at(message: Message, path: str) -> str:
    """The offending value as text, cut short; empty where the path leads through a list."""
    value: object = message
    for name in path.split("."):
        if "[" in name or not hasattr(value, name):
            return ""
        value = getattr(value, name)
    if isinstance(value, Message) or not isinstance(value, (str, bytes, int, float)):
        return ""
    shown = value.hex() if isinstance(value, bytes) else str(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}... ({len(shown)} characters)"


def _path(violation: protovalidate.Violation) -> str:
    parts = []
    for element in violation.proto.field.elements:
        index = getattr(element, "subscript", None)
        number = getattr(index, "value", index) if index is not None else None
        parts.append(element.field_name + (f"[{number}]" if isinstance(number, int) else ""))
    return ".".join(parts)


def validate(message: Message) -> None:
    """Raises InvalidArgument with one violation per broken rule, each naming field, value and limit."""
    found = _validator.collect_violations(message)
    if not found:
        return
    violations = []
    for violation in found[:16]:
        field = _path(violation)
        shown = _value_at(message, field)
        text = violation.proto.message or violation.proto.rule_id
        violations.append((field, f"{text}, got {shown!r}" if shown else text))
    first_field, first_text = violations[0]
    raise InvalidArgument(f"{first_field}: {first_text}", violations=violations)
