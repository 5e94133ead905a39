"""The child that runs an operator's functions: `python -m computemesh.sandbox.functions FD FILE...`.

The code is the operator's own, so it keeps network, environment and log, and has no memory limit; what it is given
comes from strangers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from computemesh.sandbox.child import Link, Refused
from computemesh.sandbox.exposed import EXPOSED, Exposed
from computemesh.sandbox.frames import Kind

MAX_RESULT_BYTES = 2**20
MAX_PROBLEMS = 5


def canonical(value: Any) -> bytes:
    """A JSON value in one form: sorted keys, no blanks, UTF-8, no line breaks. Raises ValueError on NaN, infinities
    and lone surrogates."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def load(files: list[str]) -> list[Callable[[], object]]:
    """Import the files, so that their functions register; the `init` functions they have."""
    inits = []
    for number, file in enumerate(files):
        name = f"computemesh_functions_{number}_{Path(file).stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ValueError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        sys.path.insert(0, str(Path(file).parent))
        spec.loader.exec_module(module)
        if callable(init := getattr(module, "init", None)):
            inits.append(init)
    return inits


def describe() -> list[dict[str, Any]]:
    """What is on offer, in name order."""
    return [
        {
            "name": one.name, "timeout_s": one.timeout_s,
            "input_schema": canonical(one.takes.model_json_schema()).decode(),
            "output_schema": canonical(one.gives.model_json_schema(mode="serialization")).decode(),
        }
        for one in sorted(EXPOSED.values(), key=lambda one: one.name)
    ]  # fmt: skip


def call(one: Exposed[Any, Any], data: bytes) -> bytes:
    """Validate, call, validate: the result's canonical bytes. Raises Refused with the reason."""
    from pydantic import ValidationError

    try:
        question = one.takes.model_validate_json(data)
    except ValidationError as error:
        raise Refused("INPUT", f"{one.name} does not take this: {_problems(error)}") from None
    try:
        answer = one.call(question)
    except Exception as error:
        raise Refused("FAILED", f"{one.name} failed: {type(error).__name__}: {error}") from None
    try:
        result = canonical(one.answered(answer))
    except (ValidationError, ValueError, TypeError) as error:
        problems = _problems(error) if isinstance(error, ValidationError) else str(error)
        raise Refused("RESULT", f"{one.name} returned what its own schema does not allow: {problems}") from None
    if len(result) > MAX_RESULT_BYTES:
        raise Refused("RESULT", f"{one.name} returned {len(result):,} bytes; at most {MAX_RESULT_BYTES:,} are taken")
    return result


def _problems(error: Any) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)[:MAX_PROBLEMS]
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'the value'}: {item['msg']}" for item in found)


def serve(link: Link, files: list[str]) -> None:
    """Answer calls until the parent is gone: one request is one call."""
    try:
        for init in load(files):
            init()
    except BaseException as error:
        link.fail(Refused("LOAD", f"{', '.join(files)}: {type(error).__name__}: {error}", again=True))
        return
    link.send(Kind.READY)
    while True:
        request = link.request()
        try:
            if request.get("describe"):
                link.document(describe())
            else:
                one = EXPOSED.get(request["name"])
                if one is None:
                    known = ", ".join(sorted(EXPOSED)) or "none"
                    raise Refused("UNKNOWN", f"no function {request['name']!r} here; there are: {known}", again=True)
                link.phase("running")
                link.send(Kind.OUTPUT, call(one, request["data"].encode()))
        except Refused as refused:
            link.fail(refused)
        else:
            link.send(Kind.DONE)


if __name__ == "__main__":
    serve(Link(int(sys.argv[1]), idle_s=None), sys.argv[2:])
