"""Writes docs/reference.md from the contracts: `make docs`.

    python docs/make_reference.py DESCRIPTORS > docs/reference.md

DESCRIPTORS is a FileDescriptorSet with source information (`protoc --include_source_info --descriptor_set_out`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, text_format

from buf.validate import validate_pb2

PACKAGE = "computemesh.v1"
HEAD = """# Reference

Every call, message and enum of the contracts, generated from `proto/computemesh/v1` by `make docs`; do not edit. The
rules in *Must be* are enforced by every service (protovalidate), a field without one may be absent. Conventions of the
whole package (hexadecimal, times, amounts) are at the top of `common.proto`; signatures and layouts in
[PROTOCOL.md](PROTOCOL.md). Services also answer health, and
reflection and channelz where their configuration says so."""
Field = descriptor_pb2.FieldDescriptorProto
MESSAGE, SERVICE, ENUM, MEMBER = 4, 6, 5, 2
"""Field numbers of FileDescriptorProto, and of a member in any of these: what source locations are made of."""


def comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """The comment in front of each element, as one paragraph, by its path."""
    return {tuple(location.path): " ".join(location.leading_comments.split())
            for location in file.source_code_info.location}  # fmt: skip


def type_of(field: Field, parent: descriptor_pb2.DescriptorProto) -> str:
    """A field's type as a contract writes it, without the package; messages of the package lead to their table."""
    if not field.type_name:
        name = Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    elif entries := [one for one in parent.nested_type if field.type_name.endswith(f".{parent.name}.{one.name}")]:
        (entry,) = entries
        key, value = entry.field
        return f"map<{type_of(key, entry)}, {type_of(value, entry)}>"
    elif field.type_name.startswith(f".{PACKAGE}."):
        name = link(field.type_name)
    else:
        name = field.type_name.removeprefix(".")
    return f"repeated {name}" if field.label == Field.LABEL_REPEATED else name


def link(full_name: str) -> str:
    """A message's or enum's name, leading to its table."""
    name = full_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})"


def rules_of(field: Field) -> str:
    """The validation rules, as the contract writes them."""
    rules = field.options.Extensions[validate_pb2.field]
    return text_format.MessageToString(rules, as_one_line=True).strip() if rules.ByteSize() else ""


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|")


def service(file: Any, at: int, said: dict[tuple[int, ...], str]) -> Iterator[str]:
    one = file.service[at]
    yield f"## {one.name}\n\n{said.get((SERVICE, at), '')}\n"
    for number, rpc in enumerate(one.method):
        up, down = ("stream " if flag else "" for flag in (rpc.client_streaming, rpc.server_streaming))
        yield f"**{rpc.name}**({up}{link(rpc.input_type)}) → {down}{link(rpc.output_type)}"
        rest = rpc.options.Extensions[annotations_pb2.http]
        verb = rest.WhichOneof("pattern")
        way = f" REST: `{verb.upper()} {getattr(rest, verb)}`." if verb and verb != "custom" else ""
        yield f"<br>{said.get((SERVICE, at, MEMBER, number), '')}{way}\n"


def message(file: Any, at: int, said: dict[tuple[int, ...], str]) -> Iterator[str]:
    one = file.message_type[at]
    yield f"### {one.name}\n\n{said.get((MESSAGE, at), '')}".rstrip() + "\n"
    if not one.field:
        yield "No fields.\n"
        return
    yield "| Field | Type | Meaning | Must be |\n| --- | --- | --- | --- |"
    for number, field in enumerate(one.field):
        rules = rules_of(field)
        meaning = said.get((MESSAGE, at, MEMBER, number), "")
        choice = f"one of `{one.oneof_decl[field.oneof_index].name}`. " if field.HasField("oneof_index") else ""
        must = f"`{cell(rules)}`" if rules else ""
        yield f"| `{field.name}` = {field.number} | {type_of(field, one)} | {choice}{cell(meaning)} | {must} |"
    yield ""


def enum(file: Any, at: int, said: dict[tuple[int, ...], str]) -> Iterator[str]:
    one = file.enum_type[at]
    yield f"### {one.name}\n\n{said.get((ENUM, at), '')}".rstrip() + "\n"
    yield "| Value | Meaning |\n| --- | --- |"
    for number, value in enumerate(one.value):
        yield f"| `{value.name}` = {value.number} | {cell(said.get((ENUM, at, MEMBER, number), ''))} |"
    yield ""


def reference(files: descriptor_pb2.FileDescriptorSet) -> str:
    """The whole page: services first, then what they speak of, contract by contract."""
    own = [(file, comments(file)) for file in files.file if file.package == PACKAGE]
    lines = [HEAD, ""]
    for file, said in own:
        for at in range(len(file.service)):
            lines += service(file, at, said)
    for file, said in own:
        lines.append(f"## Messages of {Path(file.name).name}\n")
        for at in range(len(file.message_type)):
            lines += message(file, at, said)
        for at in range(len(file.enum_type)):
            lines += enum(file, at, said)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference(descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())))
