"""Reading a task's payload into its model, with refusals a customer can act on.

Every field of a model says in its `description` what it must be; that sentence is the refusal.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from computemesh.trust.errors import InvalidArgument

M = TypeVar("M", bound=BaseModel)
MAX_SHOWN = 60
MAX_TOLD = 1500
MAX_VIOLATIONS = 10


class Payload(BaseModel):
    """Base of all payload models: immutable, and an unknown field is an error, not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _whole(value: object) -> object:
    """A Struct knows only doubles, so 2048.0 is 2048; 2.5, true and "2048" are not whole numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("not a whole number")
    return int(value)


Whole = Annotated[int, BeforeValidator(_whole)]


def _text(value: object) -> object:
    """A number given where text is asked is its decimal form: `seed=42` is the seed "42" from every client."""
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError, a ValueError, on lone surrogates
    if isinstance(value, str) or value is None:
        return value
    return str(_whole(value))


Text = Annotated[str, BeforeValidator(_text)]


def shown(value: object) -> str:
    """A value as an error may repeat it: bounded, whatever was sent."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        value = int(value)
    if isinstance(value, int) and abs(value) > 2**63:
        return "a number beyond 2^63"  # Python refuses to print the very long ones
    text = repr(value[: MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def read(model: type[M], task_type: str, payload: Mapping[str, object]) -> M:
    """Validate `payload` against `model`.

    Raises InvalidArgument with one violation per bad field: its path `payload.<field>`, the value, the limit.
    """
    try:
        return model.model_validate(dict(payload))
    except ValidationError as error:
        first = error.errors(include_url=False)[:MAX_VIOLATIONS]
        found = [_violation(model, task_type, item) for item in first]
    raise refuse(*dict.fromkeys(found))


def refuse(*violations: tuple[str, str]) -> InvalidArgument:
    """An InvalidArgument from (field, text) pairs; fields get the `payload.` prefix here."""
    full = [(f"payload.{name}", text) for name, text in violations]
    told = "; ".join(text for _, text in violations)
    if len(told) > MAX_TOLD:
        told = f"{told[:MAX_TOLD]}... ({len(violations)} problems)"
    return InvalidArgument(told, violations=full)


def _violation(model: type[BaseModel], task_type: str, item: Any) -> tuple[str, str]:
    name = str(item["loc"][0]) if item["loc"] else "payload"
    known = model.model_fields
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return name[:MAX_SHOWN], (
            f"{shown(name)} is not a field of a {task_type} task{hint}; its fields are {', '.join(known)}"
        )
    rule = known[name].description
    if item["type"] == "missing":
        return name, f"{name} is missing; it must be {rule}"
    return name, f"{name} must be {rule}, not {shown(item['input'])}"
