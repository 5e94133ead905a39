"""How the market refuses a field."""

from __future__ import annotations

from computemesh.trust.errors import InvalidArgument


def refuse(field: str, problem: str) -> InvalidArgument:
    """An InvalidArgument on one field."""
    return InvalidArgument(f"{field} {problem}", violations=[(field, problem)])
