"""JSON Schemas of the contracts' messages, with the limits that their validation rules state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

from buf.validate import validate_pb2

_INTEGERS = {
    Field.TYPE_INT32: (-(2**31), 2**31 - 1), Field.TYPE_SINT32: (-(2**31), 2**31 - 1),
    Field.TYPE_UINT32: (0, 2**32 - 1),
}  # fmt: skip
_LONG = {Field.TYPE_INT64, Field.TYPE_SINT64, Field.TYPE_UINT64}
_FREE = {
    ".google.protobuf.Struct": {"type": "object", "description": "Any JSON object."},
    ".google.protobuf.Value": {},
}


class Schemas:
    """Components by short message name, filled as they are referred to."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet, comment: Callable[[str], str]) -> None:
        self.components: dict[str, Any] = {}
        self._comment = comment
        self._messages = {f".{file.package}.{one.name}": one for file in files.file for one in file.message_type}
        self._enums = {f".{file.package}.{one.name}": one for file in files.file for one in file.enum_type}

    def message(self, name: str) -> descriptor_pb2.DescriptorProto:
        """The descriptor of a full name."""
        return self._messages["." + name.lstrip(".")]

    def reference(self, name: str) -> dict[str, Any]:
        """A reference to a message's schema, which is added to the components."""
        full = "." + name.lstrip(".")
        if full in _FREE:
            return dict(_FREE[full])
        short = full.rpartition(".")[2]
        if short not in self.components:
            self.components[short] = {}  # first: messages may hold themselves
            self.components[short] = self._object(full)
        return {"$ref": f"#/components/schemas/{short}"}

    def parameter(self, message: str, field: Field, where: str) -> dict[str, Any]:
        """A field as a parameter of the path or the query."""
        schema = self._field(message, field)
        text = schema.pop("description", "")
        if where == "path" and schema.get("type") == "string" and "pattern" not in schema:
            schema = {"minLength": 1, **schema}
        return {"name": field.name, "in": where, **({"required": True} if where == "path" else {}),
                **({"description": text} if text else {}), "schema": schema}  # fmt: skip

    def _object(self, full: str) -> dict[str, Any]:
        message = self._messages[full]
        text = self._comment(full)
        return {
            "type": "object",
            **({"description": text} if text else {}),
            "properties": {field.name: self._field(full, field) for field in message.field},
            "additionalProperties": False,
        }

    def _field(self, message: str, field: Field) -> dict[str, Any]:
        rules = field.options.Extensions[validate_pb2.field]
        text = self._comment(f"{message}.{field.name}")
        entry = next((one for one in self._messages["." + message.lstrip(".")].nested_type
                      if one.options.map_entry and field.type_name.endswith("." + one.name)), None)  # fmt: skip
        schema: dict[str, Any]
        if entry is not None:
            schema = {"type": "object", "additionalProperties": self._single(entry.field[1], rules)}
        elif field.label == Field.LABEL_REPEATED:
            schema = {"type": "array", "items": self._single(field, rules.repeated.items)}
            schema |= _limits(rules.repeated, min_items="minItems", max_items="maxItems")
        else:
            schema = self._single(field, rules)
        return schema | ({"description": text} if text else {})

    def _single(self, field: Field, rules: validate_pb2.FieldRules) -> dict[str, Any]:
        if field.type in _LONG:
            return _long(field.type == Field.TYPE_UINT64)
        if field.type in _INTEGERS:
            return _integer(*_INTEGERS[field.type], rules.int32 if rules.HasField("int32") else rules.uint32)
        if field.type == Field.TYPE_STRING:
            limits = _limits(rules.string, min_len="minLength", max_len="maxLength", pattern="pattern")
            return {"type": "string"} | limits
        if field.type == Field.TYPE_BYTES:
            return {"type": "string", "format": "byte", "contentEncoding": "base64"}
        if field.type == Field.TYPE_BOOL:
            return {"type": "boolean"}
        if field.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
            return {"type": "number"}
        if field.type == Field.TYPE_ENUM:
            return {"type": "string", "enum": [value.name for value in self._enums[field.type_name].value]}
        return self.reference(field.type_name)


def _long(unsigned: bool) -> dict[str, Any]:
    low, high = (0, 2**64 - 1) if unsigned else (-(2**63), 2**63 - 1)
    pattern = "^[0-9]{1,20}$" if unsigned else "^-?[0-9]{1,19}$"
    return {"type": ["string", "integer"], "pattern": pattern, "minimum": low, "maximum": high,
            "format": "uint64" if unsigned else "int64"}  # fmt: skip


def _integer(low: int, high: int, rules: Any) -> dict[str, Any]:
    if rules.HasField("gte"):
        low = rules.gte
    if rules.HasField("lte"):
        high = rules.lte
    return {"type": "integer", "minimum": low, "maximum": high}


def _limits(rules: Any, **keywords: str) -> dict[str, Any]:
    return {keyword: getattr(rules, name) for name, keyword in keywords.items() if rules.HasField(name)}
