"""One frozen dataclass per service, from one TOML file and environment variables; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from computemesh.trust.errors import InvalidArgument

T = TypeVar("T")


def _bad(name: str, value: object, expected: str) -> InvalidArgument:
    return InvalidArgument(f"configuration: {name} is {value!r}, expected {expected}",
                           violations=[(name, f"expected {expected}")], reason="INVALID_CONFIGURATION")


def _from_text(name: str, text: str, kind: Any) -> Any:
    """An environment variable's text as a value of `kind`; lists are separated by commas."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise _bad(name, text, "true or false")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise _bad(name, text, "a number") from None
    return tuple(part for part in text.split(",") if part)


def _checked(name: str, value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) in (tuple, list):
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise _bad(name, value, "a list of strings")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise _bad(name, value, {str: "a string", int: "an integer", bool: "true or false"}.get(kind, kind.__name__))


def load(cls: type[T], path: str | Path | None, env_prefix: str, environ: Mapping[str, str] = os.environ) -> T:
    """Reads `cls` (a frozen dataclass) from the TOML file at `path`, then from `<env_prefix>_<FIELD>` variables.

    Raises InvalidArgument for a missing file, an unknown key, a wrong type or a field without value.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise _bad("--config", str(path), "the path of an existing TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _bad("--config", str(path), f"a TOML file ({error})") from None
    kinds = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise _bad(unknown[0], values[unknown[0]], f"no such key; known are {', '.join(sorted(fields))}")
    for name in fields:
        text = environ.get(f"{env_prefix}_{name.upper()}")
        if text is not None:
            values[name] = _from_text(name, text, kinds[name])
    missing = [name for name, field in fields.items() if name not in values
               and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING]
    if missing:
        raise _bad(missing[0], None, "a value: the key is missing")
    return cls(**{name: _checked(name, value, kinds[name]) for name, value in values.items()})
