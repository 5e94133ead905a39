"""The OpenAPI document of the REST API, made from the contracts: routes, comments and validation rules.

    python -m edge.openapi DESCRIPTORS > docs/openapi.json

DESCRIPTORS is protoc's FileDescriptorSet with source information (`make proto`). JSON is that of Envoy's transcoder:
contract field names, every scalar printed, 64-bit integers as strings (accepted as numbers too), bytes as base64.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from edge import schema
from edge.contracts import ALONE, Method, methods

# HTTP statuses of google.rpc.Code, https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_STATUSES = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
}  # fmt: skip
_MEANINGS = {
    400: "A field or parameter is wrong, or the state does not allow it.", 401: "No credentials, or unknown ones.",
    403: "Not the caller's, or a page of a foreign origin asks.", 404: "No such thing, or no such path.",
    409: "In conflict with what is there.", 413: "The body is too large.", 429: "Too much at once: wait and repeat.",
    "5XX": "A fault of ours, or a service that is not reached: repeating is safe.",
}  # fmt: skip
_STREAMING = "The answer is a stream of JSON objects, one a line."


class Comments:
    """Leading comments of messages, fields, methods and enum values by full name."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self._of: dict[str, str] = {}
        for file in files.file:
            if file.package.startswith("computemesh."):
                for location in file.source_code_info.location:
                    if text := location.leading_comments.strip():
                        self._of[_name(file, list(location.path))] = " ".join(text.split())

    def of(self, full_name: str) -> str:
        """The comment as one paragraph; empty where there is none."""
        return self._of.get(full_name.lstrip("."), "")


def _name(file: Any, path: list[int]) -> str:
    """The full name of what a source location is about (descriptor.proto, SourceCodeInfo.Location.path)."""
    parts, at = [file.package], file
    for number, index in zip(path[::2], path[1::2], strict=False):
        field = at.DESCRIPTOR.fields_by_number[number].name
        at = getattr(at, field)[index] if field in {"message_type", "service", "method", "field", "enum_type", "value",
                                                    "nested_type"} else None  # fmt: skip
        if at is None:
            return ""
        parts.append(at.name)
    return ".".join(parts)


def document(files: descriptor_pb2.FileDescriptorSet, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    comments = Comments(files)
    schemas = schema.Schemas(files, comments.of)
    rpcs = [method for method in methods() if method.path]
    codes = {method.name: comments.of(f"{method.service}.{method.name}") for method in rpcs}
    paths: dict[str, dict[str, Any]] = {}
    for method in rpcs:
        route = re.sub(r"\{(\w+)=[^}]*\}", r"{\1}", method.path)
        paths.setdefault(route, {})[method.verb] = _operation(method, route, schemas, codes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "computemesh", "version": version,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}, "description":
                 "A verifiable GPU compute market over REST. Made from the contracts in proto/computemesh/v1."},
        "security": [{"bearer": []}, {}],
        "paths": paths,
        "components": {
            "schemas": {**schemas.components, "Status": _status()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description":
                "An API key, or a cm1. token that the caller's own key signed (docs/PROTOCOL.md section 4)."}},
        },
    }  # fmt: skip


def _status() -> dict[str, Any]:
    return {
        "type": "object", "description": "google.rpc.Status", "required": ["code", "message", "details"],
        "properties": {
            "code": {"type": "integer", "description": "google.rpc.Code"},
            "message": {"type": "string"},
            "details": {"type": "array", "items": {"type": "object"}, "description":
                        "ErrorInfo with reason and domain, BadRequest with the fields at fault, RetryInfo."},
        },
    }  # fmt: skip


def _operation(method: Method, route: str, schemas: schema.Schemas, comments: dict[str, str]) -> dict[str, Any]:
    in_path = re.findall(r"\{(\w+)\}", route)
    fields = {field.name: field for field in schemas.message(method.request).field}
    parameters = [schemas.parameter(method.request, fields[name], "path") for name in in_path]
    operation: dict[str, Any] = {
        "operationId": method.name,
        "tags": [method.service.rpartition(".")[2]],
        "description": " ".join(filter(None, [comments[method.name], _STREAMING if method.streams else ""])),
    }
    rest = [field for name, field in fields.items() if name not in in_path]
    if method.body == "*":
        operation["requestBody"] = {"required": True, "content": {"application/json": {
            "schema": schemas.reference(method.request)}}}  # fmt: skip
    elif method.verb != "post":
        parameters += [schemas.parameter(method.request, field, "query") for field in rest]
    if parameters:
        operation["parameters"] = parameters
    answer = schemas.reference(method.response)
    if method.name in ALONE:
        only = next(field for field in schemas.message(method.response).field if field.name == method.alone)
        answer = schemas.reference(only.type_name)
    ok: dict[str, Any] = {"description": "OK", "content": {"application/json": {"schema": answer}}}
    if method.streams:
        ok["content"] = {"application/x-ndjson": {"schema": {"description": _STREAMING, "x-item": answer}}}
        operation["x-streaming"] = True
    operation["responses"] = {"200": ok, **_errors(method, comments)}
    return operation


def _errors(method: Method, comments: dict[str, str]) -> dict[str, Any]:
    """What else it may answer: the codes its comment names, those of the RPCs it refers to, and every RPC's."""
    statuses: set[int] = {400, 401, 403, 404, 429}
    if method.body:
        statuses.add(413)
    said = set(_said(method.name, comments, set()))
    statuses |= {status for code, status in _STATUSES.items() if code in said}
    answer = {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}}
    return {str(status): {"description": _MEANINGS[status], "content": answer} for status in [*sorted(statuses), "5XX"]}


def _said(name: str, comments: dict[str, str], seen: set[str]) -> Iterator[str]:
    seen.add(name)
    yield from re.findall(r"\b[A-Z]+_[A-Z_]+\b|\bABORTED\b", comments[name])
    for other in re.findall(r"\b[Aa]s (?:in )?(\w+)", comments[name]):
        if other in comments and other not in seen:
            yield from _said(other, comments, seen)


def main() -> None:
    """Writes the document of the descriptors named on the command line to stdout."""
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    json.dump(document(files, "1"), sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
