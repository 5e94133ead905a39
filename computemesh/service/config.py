"""One frozen dataclass per service, from one TOML file and environment variables; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from computemesh.trust.errors import InvalidArgument

T = TypeVar("T")
SERVICES = ("ledger", "market", "orchestrator", "worker")
MOST = 2**53


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
            raise _bad(name, text, "an integer" if kind is int else "a number") from None
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


def number(default: Any, least: float = 1, most: float = MOST) -> Any:
    """A field that is a number from `least` to `most`; one without this is at least 0."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


def _within(name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        least, most = field.metadata.get("least", 0), field.metadata.get("most", MOST)
        if not least <= value <= most:  # nor is NaN
            raise _bad(name, value, f"{least:,} to {most:,}" if most < MOST else f"at least {least:,}")
    return value


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"


def _file(path: str | Path, service: str) -> dict[str, Any]:
    """What the file says to `service`: its own table, where the file has one table per service, else all of it."""
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise _bad("--config", str(path), "the path of an existing TOML file") from None
    except PermissionError:
        raise _bad("--config", str(path), "a file that this user may read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad("--config", str(path), f"a TOML file ({error})") from None
    tables = [name for name, value in values.items() if isinstance(value, dict)]
    if not tables:
        return values
    for name in values:
        if name not in SERVICES or name not in tables:
            what = "one table per service" if name in tables else "no key outside of the services' tables"
            raise _bad(name, values[name], f"{what}; {_near(name, SERVICES)}")
    return dict(values.get(service, {}))


def load(cls: type[T], path: str | Path | None, service: str, environ: Mapping[str, str] = os.environ) -> T:
    """Reads `cls` (a frozen dataclass) from the TOML file at `path`, then from COMPUTEMESH_<SERVICE>_<FIELD> variables.

    The file has the service's keys, or a table for each of several services. Raises InvalidArgument for a missing file,
    an unknown key or variable, a wrong type, a number out of range or a field without value.
    """
    values: dict[str, Any] = {} if path is None else _file(path, service)
    kinds = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in sorted(set(values) - set(fields)):
        raise _bad(name, values[name], f"no such key; {_near(name, fields)}")
    prefix = f"COMPUTEMESH_{service.upper()}_"
    for variable in sorted(environ):
        name = variable.removeprefix(prefix).lower()
        if not variable.startswith(prefix):
            continue
        if name not in fields:
            known = [prefix + field.upper() for field in fields]
            raise _bad(variable, environ[variable], f"no such variable; {_near(variable, known)}")
        values[name] = _from_text(variable, environ[variable], kinds[name])
    missing = [name for name, field in fields.items() if name not in values
               and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING]
    if missing:
        raise _bad(missing[0], None, "a value: the key is missing")
    return cls(**{name: _within(name, _checked(name, value, kinds[name]), fields[name])
                  for name, value in values.items()})  # fmt: skip
