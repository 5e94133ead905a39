"""Every parser of bytes that strangers send, each with valid inputs to begin with.

A parser answers, or refuses with a MeshError (what runs inside of a sandbox: with its own refusal). Anything else is a
crash. What it reads back is the same after another round, where the format has one encoding.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from computemesh import workloads
from computemesh.kernels import npz
from computemesh.kernels.models import folder as model_folder
from computemesh.kernels.rendering import gltf
from computemesh.sandbox import arrays, inputs
from computemesh.sandbox.child import Refused
from computemesh.service import auth
from computemesh.service.config import load as load_config
from computemesh.service.validation import validate
from computemesh.trust import (
    acts,
    amount,
    audit,
    checkpoint,
    folder,
    identity,
    merkle,
    receipt,
    relay,
    statement,
    tiles,
)
from computemesh.trust.errors import MeshError
from computemesh.trust.tlog_proof import TlogProof
from computemesh.v1 import ledger_pb2, market_pb2
from ledger import wire
from ledger.evidence import examine
from market import orders
from market.config import Config as MarketConfig
from tests.fuzz.laws import Broken, judge
from tests.fuzz.messages import Maker
from tests.fuzz.mutation import mutate, mutate_json
from tests.trust import test_acts, test_receipt, test_relay, test_statement, test_tlog_proof
from tests.workloads import programs, scenes
from tests.workloads.test_laws import SMALL

CHAIN = test_receipt.CHAIN


@dataclass(frozen=True)
class Parser:
    """`parse` takes bytes; `refusals` are what it may raise. `again`, where there is one: what was parsed, packed: the
    same bytes, or the format has two encodings. `shaped` changes an input and leaves its outer form whole."""

    name: str
    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...] = (MeshError,)
    again: Callable[[Any], bytes] | None = None
    shaped: Callable[[random.Random, bytes], bytes] | None = None

    def spoiled(self, rng: random.Random, data: bytes) -> bytes:
        """An input near to `data`."""
        if self.shaped is not None and rng.random() < 0.7:
            try:
                return self.shaped(rng, data)
            except (ValueError, OverflowError, DecodeError, RecursionError):
                pass  # its form was broken before
        return mutate(rng, data, self.seeds)

    def feed(self, data: bytes) -> bool:
        """Whether `data` was accepted. Raises Broken."""
        what = f"{self.name} of {data[:2000]!r}"
        try:
            found = self.parse(data)
        except self.refusals as error:
            if isinstance(error, MeshError):
                judge(error, what, data)
            return False
        except (Broken, KeyboardInterrupt):
            raise
        except BaseException as error:  # MemoryError and what C++ throws are crashes, too
            raise Broken(f"{what}: {type(error).__name__}: {error}") from error
        if self.again is not None and self.again(found) != data:
            raise Broken(f"{what}: is packed as {self.again(found)[:2000]!r}")
        return True


def text(parse: Callable[[str], Any]) -> Callable[[bytes], Any]:
    """A parser of text fed with bytes."""
    return lambda data: parse(data.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode())


def in_file(parse: Callable[[Path], Any], suffix: str) -> Callable[[bytes], Any]:
    """A parser of files fed with bytes. One file serves for all inputs."""
    path = Path(tempfile.mkdtemp()) / f"input{suffix}"

    def read(data: bytes) -> Any:
        path.write_bytes(data)
        return parse(path)

    return read


def _audit() -> Parser:
    tree = audit.JobTree(audit.Layout(2, 5), bytes(range(32)) * 10)
    seed = audit.openings_bytes([tree.open(at, b"unit") for at in (1, 7)])
    root = tree.result_hash

    def parse(data: bytes) -> Any:
        found = audit.parse_openings(data)
        for one in found:
            audit.fold_opening(tree.layout, one, bytes(32))
            audit.verify_previous(tree.layout, one, root)
        return found

    def fold(data: bytes) -> bytes:
        try:
            return audit.openings_bytes(parse(data))
        except MeshError:
            return audit.openings_bytes(audit.parse_openings(data))

    return Parser("audit openings", (seed, audit.openings_bytes([])), fold, again=lambda packed: packed)


def _statements() -> Iterator[Parser]:
    for value in test_statement.SAMPLES:
        kind = type(value)
        yield Parser(f"statement {kind.__name__.lower()}", (value.pack(),), kind.unpack, again=kind.pack)
    for act in test_acts.EXAMPLES:
        yield Parser(f"act {act.KIND}", (act.pack(),), lambda data, kind=act.KIND: acts.unpack(kind, data),
                     again=lambda found: found.pack())  # fmt: skip
    commitments = test_statement.batch(3)
    yield Parser("commitments", (commitments,), lambda data: list(statement.iter_commitments(data)))


def _notes() -> Iterator[Parser]:
    note, verifier = test_tlog_proof.NOTE, checkpoint.NoteVerifier(test_tlog_proof.SIGNER.vkey)
    yield Parser("checkpoint", ((note.partition("\n\n")[0] + "\n").encode(),), text(checkpoint.Checkpoint.parse))
    yield Parser("signed note", (note.encode(),), text(lambda found: checkpoint.open_note(found, [verifier])))
    yield Parser("verifier key", (test_tlog_proof.SIGNER.vkey.encode(),), text(checkpoint.NoteVerifier))
    yield Parser("tlog proof", (test_tlog_proof.PROOF.text().encode(),), text(TlogProof.parse))
    yield Parser("tile bundle", (tiles.bundle([b"a", b"bc" * 40]),), tiles.parse_bundle)


def _receipts() -> Iterator[Parser]:
    good = test_receipt.GOOD

    def believe(data: bytes) -> Any:
        found = receipt.Receipt.from_json(data)
        if receipt.accepted(receipt.verify(found, test_receipt.LOG.vkey)) and found != good:
            raise Broken(f"another receipt is accepted: {data!r}")
        return found

    block = test_relay.block(2)
    yield Parser("receipt", (good.to_json().encode(),), believe, shaped=mutate_json)
    yield Parser("relay", (block.to_json().encode(),),
                 lambda data: relay.check(relay.Relay.from_json(data), test_relay.LOG.vkey),
                 shaped=lambda rng, data: _indented(mutate_json(rng, data)))  # fmt: skip


def _indented(data: bytes) -> bytes:
    """As relay files are written."""
    return (json.dumps(json.loads(data), indent=1) + "\n").encode()


def _texts() -> Iterator[Parser]:
    address = identity.PrivateKey(bytes([7]) * 32).address
    token = auth.make_token(identity.PrivateKey(bytes([7]) * 32), CHAIN, 2**60)
    yield Parser("amount", (b"1.25", b"1000000", b"0.000001"), text(amount.parse_cpc))
    yield Parser("address", (address.encode(),), text(identity.decode_address))
    yield Parser("token", (token.encode(),), text(lambda found: auth.read_token(found, CHAIN, 0)))
    yield Parser("array type", (b"float32[128,10]", b"int32[]"), text(arrays.parse_type), refusals=(ValueError,))
    yield Parser("public key", (identity.PrivateKey(bytes([7]) * 32).public,), identity.valid_public_key)
    path = merkle.Tree([bytes(32)] * 7).path(3)
    yield Parser("inclusion path", (b"\x03\x07" + b"".join(path),), lambda data: merkle.verify_inclusion(
        bytes(32), *(*data[:2], 0, 0)[:2], [data[at : at + 32] for at in range(2, len(data), 32)], bytes(32)))
    files = {"a/b.bin": folder.Entry(bytes(32), 7), "c": folder.Entry(b"\x01" * 32, 0)}
    yield Parser("folder manifest", (folder.encode(files),), folder.parse, again=folder.encode)


def _files() -> Iterator[Parser]:
    document, binary = scenes.triangle()
    yield Parser("glTF scene", (scenes.glb(document, binary),), in_file(gltf.load, ".glb"),
                 refusals=(MeshError, gltf.BadScene))  # fmt: skip
    packed = io.BytesIO()
    np.savez_compressed(packed, x=np.zeros((4, 3), np.uint8), y=np.arange(4))
    stored = programs.npz(np.arange(4, dtype=np.float32))
    yield Parser("npz", (packed.getvalue(),),
                 in_file(lambda path: npz.read_arrays(path, ("x", "y"), "dataset", 4096), ".npz"))  # fmt: skip
    kinds = (arrays.parse_type("float32[4]"),)
    yield Parser("npz of a program", (stored,), in_file(lambda path: _first(inputs.Inputs(path, kinds, 0)), ".npz"),
                 refusals=(Refused,))  # fmt: skip
    yield Parser("program container", (arrays.pack_program(b"exported"),), arrays.unpack_program, (ValueError,))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    yield Parser("safetensors header", (weights,), in_file(model_folder.read_header, ".safetensors"))
    config = b'listen = "127.0.0.1:0"\ndata_dir = "d"\nkey_file = "k"\nledger = "l:1"\nopen_tasks = 5\n' \
             b'calls_per_s = 1.5\nchain_id = "c"\norchestrator_keys = ["00"]\n'  # fmt: skip
    yield Parser("configuration", (config, b"[market]\n" + config + b"[ledger]\n"),
                 in_file(lambda path: load_config(MarketConfig, path, "market", {}), ".toml"))  # fmt: skip


def _first(found: inputs.Inputs) -> Any:
    try:
        return found.item(0)
    finally:
        found.close()


def _payloads() -> Iterator[Parser]:
    for name in workloads.names():
        task = workloads.get(name)

        def parse(data: bytes, task: Any = task) -> Any:
            params = task.parse(json.loads(data, parse_int=float))  # a Struct knows doubles only
            task.price(params)
            return task.jobs(params)

        yield Parser(f"{name} payload", (json.dumps(SMALL[name]).encode(),), _json_object(parse), shaped=mutate_json)

    def request(data: bytes) -> Any:
        message = market_pb2.CreateTaskRequest.FromString(data)
        validate(message)
        return orders.read(message, {})

    made = []
    for name, payload in SMALL.items():
        one = market_pb2.CreateTaskRequest(challenge_type=name, reward="1")
        one.payload.update(json.loads(json.dumps(payload)))
        made.append(one.SerializeToString())
    yield Parser("order", tuple(made), _message(request), shaped=_refilled(market_pb2.CreateTaskRequest))


def _json_object(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """JSON that is no object cannot be sent as a payload: a Struct is one."""

    def read(data: bytes) -> Any:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return parse(data) if isinstance(document, dict) else None

    return read


def _message(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Bytes that are no message are refused before a service sees them."""
    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return None

    return read


def _refilled(kind: type[Message]) -> Callable[[random.Random, bytes], bytes]:
    """Changes a field of a serialised message."""
    maker = Maker(random.Random(0), {"challenge_type": list(SMALL), "reward": ["1", "5"]}, SMALL)

    def change(rng: random.Random, data: bytes) -> bytes:
        maker.rng = rng
        return maker.damaged(kind.FromString(data))

    return change


def _transactions() -> Parser:
    def parse(data: bytes) -> Any:
        return examine(CHAIN, wire.transaction(ledger_pb2.Transaction.FromString(data)))

    def made(**body: Any) -> bytes:
        return ledger_pb2.Transaction(id=b"i" * 16, public_key=test_receipt.CUSTOMER.public, signature=bytes(64),
                                      **body).SerializeToString()  # fmt: skip

    address = test_receipt.CUSTOMER.address
    batch = ledger_pb2.ResultBatch(worker_key=test_statement.KEY.public, worker_signature=bytes(64),
                                   commitments=test_statement.batch(2), proof_hashes=bytes(64))  # fmt: skip
    seeds = (
        made(deposit=ledger_pb2.Deposit(to=address, amount_units=5)),
        made(transfer=ledger_pb2.Transfer(to=address, amount_units=5)),
        made(open=ledger_pb2.EscrowOpen(order=test_statement.SAMPLES[0].pack())),
        made(assign=ledger_pb2.EscrowAssign(assignment=test_statement.SAMPLES[1].pack())),
        made(refund=ledger_pb2.EscrowRefund(task_id=bytes(32), cause=1)),
        made(settle=ledger_pb2.Settle(batches=[batch])),
        *(made(act=ledger_pb2.Act(kind=act.KIND, body=act.pack())) for act in test_acts.EXAMPLES),
    )
    return Parser("transaction", seeds, _message(parse), shaped=_refilled(ledger_pb2.Transaction))


def parsers() -> list[Parser]:
    """All of them, in a fixed order."""
    return [*_statements(), _audit(), *_notes(), *_receipts(), *_texts(), *_files(), *_payloads(), _transactions()]
