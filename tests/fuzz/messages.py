"""Messages made from the contracts' descriptors: as many fields as a caller might set, values that look right, and now
and then one that does not."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from buf.validate import validate_pb2
from tests.fuzz.mutation import FLOATS, NUMBERS, WORDS, any_json, mutate, mutate_json

MAX_KNOWN = 64
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1), FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}  # fmt: skip
_SIZES = (0, 1, 16, 32, 33, 64, 118)


_LEARNED = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, *_INTEGERS})


def _singular(name: str) -> str:
    """What a list of such is a list of: `running_lease_ids` are of the same kind as a `lease_id`."""
    return name.removeprefix("running_").removesuffix("s")


def _is_opaque(kind: Descriptor) -> bool:
    return bool(kind.GetOptions().map_entry) or kind.full_name == "google.protobuf.Struct"


class Maker:
    """`known`: values by field name that exist, such as ids of tasks; answers teach it more (`learn`). `payloads`: by
    task type, what its tasks may be given."""

    def __init__(self, rng: random.Random, known: dict[str, list[Any]], payloads: dict[str, Any]) -> None:
        self.rng, self._payloads = rng, payloads
        self._known: defaultdict[tuple[str, type], list[Any]] = defaultdict(list)
        for name, values in known.items():
            for value in values:
                self._known[_singular(name), type(value)].append(value)

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message with about two thirds of its fields."""
        made = GetMessageClass(kind)()
        chosen = {oneof.name: self.rng.choice(oneof.fields).name for oneof in kind.oneofs if oneof.fields}
        for field in kind.fields:
            oneof = field.containing_oneof
            if oneof is not None and len(oneof.fields) > 1:
                if chosen[oneof.name] != field.name:
                    continue
            elif self.rng.random() < 0.35:
                continue
            self._fill(made, field, depth)
        return made

    def damaged(self, message: Message) -> bytes:
        """A serialised message: as it is, with one field filled anew, or with bytes changed."""
        chance = self.rng.random()
        if chance < 0.3:
            message = type(message).FromString(message.SerializeToString())
            self._fill(message, self.rng.choice(message.DESCRIPTOR.fields), 0) if message.DESCRIPTOR.fields else None
        data = message.SerializeToString()
        return mutate(self.rng, data) if chance > 0.8 else data

    def learn(self, message: Message) -> None:
        """Remembers texts and bytes of an answer by the names of their fields."""
        for field, value in message.ListFields():
            items = value if field.is_repeated else [value]
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                if not _is_opaque(field.message_type):
                    for item in list(items)[:4]:
                        self.learn(item)
            elif field.type in _LEARNED and items:
                known = self._known[_singular(field.name), type(items[0])]
                if items[0] not in known:
                    if len(known) >= MAX_KNOWN:
                        known.pop(self.rng.randrange(MAX_KNOWN))
                    known.append(items[0])

    def _fill(self, made: Message, field: FieldDescriptor, depth: int) -> None:
        name = field.name
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.message_type.full_name == "google.protobuf.Struct":
                self._payload(getattr(made, name), made)
            elif field.message_type.GetOptions().map_entry:
                return
            elif depth < 5:
                count = self.rng.choice((0, 1, 1, 2)) if field.is_repeated else 1
                for _ in range(count):
                    target = getattr(made, name).add() if field.is_repeated else getattr(made, name)
                    target.CopyFrom(self.message(field.message_type, depth + 1))
        elif field.is_repeated:
            del getattr(made, name)[:]
            getattr(made, name).extend(self._value(field) for _ in range(self.rng.choice((0, 1, 2, 5))))
        else:
            setattr(made, name, self._value(field))

    def _payload(self, target: struct_pb2.Struct, made: Message) -> None:
        kind = getattr(made, "challenge_type", "")
        payload = self._payloads.get(kind) or self.rng.choice(list(self._payloads.values()))
        if self.rng.random() < 0.6:
            payload = json.loads(mutate_json(self.rng, json.dumps(payload).encode()))
        target.Clear()
        target.update(payload if isinstance(payload, dict) else {"value": payload})

    def _value(self, field: FieldDescriptor) -> Any:
        rng = self.rng
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if field.type in _INTEGERS:
            return self._integer(field, rules)
        match field.type:
            case FieldDescriptor.TYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.TYPE_ENUM:
                unknown = rng.random() < 0.05
                return 99 if unknown else rng.choice(field.enum_type.values).number
            case FieldDescriptor.TYPE_FLOAT:
                return rng.choice((*FLOATS[:4], rng.random()))
            case FieldDescriptor.TYPE_DOUBLE:
                return rng.choice((*FLOATS, rng.random()))
            case FieldDescriptor.TYPE_BYTES:
                return self._bytes(field.name, rules)
        return self._text(field.name, rules)

    def _integer(self, field: FieldDescriptor, rules: Any) -> int:
        least, most = _INTEGERS[field.type]
        kind = rules.WhichOneof("type")
        bound = getattr(rules, kind) if kind in ("int32", "uint32", "int64", "uint64") else None
        if bound is not None and self.rng.random() < 0.9:
            least = bound.gte if bound.HasField("gte") else least
            most = bound.lte if bound.HasField("lte") else most
        known = self._known[_singular(field.name), int] or [0]
        exotic = (0, 1, self.rng.randrange(10), self.rng.choice(NUMBERS), -1)
        drawn = self.rng.choice((*exotic, *self.rng.choices(known, k=4)))
        return min(max(drawn, least), most)

    def _bytes(self, name: str, rules: Any) -> bytes:
        known, size = self._known[_singular(name), bytes], rules.bytes.len or self.rng.choice(_SIZES)
        match self.rng.randrange(6):
            case 0 | 1 | 2 if known:
                return self.rng.choice(known)
            case 3 if known:
                return mutate(self.rng, self.rng.choice(known))
        return self.rng.randbytes(size)

    def _text(self, name: str, rules: Any) -> str:
        rng, known = self.rng, self._known[_singular(name), str]
        match rng.randrange(8):
            case 0 | 1 | 2 | 3 if known:
                return rng.choice(known)
            case 4 if known:
                return mutate(rng, rng.choice(known).encode()).decode("utf-8", "replace")
            case 5:
                return rng.choice(WORDS)
            case 6:
                return str(any_json(rng))[:500].encode("utf-8", "replace").decode()
        return rng.randbytes(33 if "66" in rules.string.pattern else 16 if "32}" in rules.string.pattern else 32).hex()
