"""Help, errors and JSON documents of every command are as the golden files say."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import typer

from computemesh.cli.cluster import Cluster
from computemesh.cli.main import app
from computemesh.cli.terms import responses_to
from computemesh.client import Client
from computemesh.trust import acts
from computemesh.trust.errors import InvalidState
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import market_pb2, orchestrator_pb2
from tests.cli.golden import FOLDER, compare, compare_shape
from tests.workloads.programs import COLLATZ

Mesh = Callable[..., CompletedProcess[str]]


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with the words that lead to it."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*path, name))


ALL = dict(commands())
WITH_JSON = [path for path, command in ALL.items() if any(one.name == "as_json" for one in command.params)]


OWN = PrivateKey.from_bytes(hashlib.sha256(b"golden").digest())
NOWHERE = "http://192.88.99.1/"
"""A URL the market accepts, of an address nobody has; the filter of its webhook lets no event through."""
UNKNOWN = "ab" * 32


@pytest.fixture(scope="module")
def task(cluster: Cluster) -> Iterator[str]:
    """A completed task with files."""
    with Client(cluster.profile) as client:
        payload = {"system": "ode", "steps": 20, "frames": 2, "parameters": {"equation": "lorenz"}}
        result = client.run("simulation", payload, "1.0", timeout=150)
        assert result.status == "completed", result.status_detail
        yield result.task_id


@pytest.fixture(scope="module")
def given(cluster: Cluster, task: str) -> Iterator[dict[str, str]]:
    """What the capital words of DOCUMENTS stand for. A list needs something in it, or its document says little."""
    with Client(cluster.profile) as client:
        digest = client.put_artifact(b"golden").digest
        for name in ("golden", "large"):
            client.register_model(name, digest)
        # No worker has the memory for it, so a task that names it waits.
        client.declare(acts.Model(acts.name_hash("large"), bytes.fromhex(digest), 1, 0, 0, 0, 10**15, 1))
        client.declare(acts.Pool(acts.name_hash("golden"), acts.name_hash("golden"), 1), "golden", "golden")
        webhook = client.market("AddWebhook", market_pb2.AddWebhookRequest(
            url=NOWHERE, filter=market_pb2.EventFilter(task_id=UNKNOWN))).webhook  # fmt: skip
        waiting = client.submit("noop", {"jobs": 1}, "1.0", model="large")
        answered = client.submit("noop", {"jobs": 1}, "1.0", delivery="manual", confirm_window_s=3600)
        until = time.monotonic() + 60
        while not responses_to(client, answered.task_id):
            assert time.monotonic() < until
            time.sleep(0.05)
        yield {
            "TASK": task, "PROGRAM": str(COLLATZ), "DIGEST": digest, "WEBHOOK": webhook.id,
            "ANSWERED": answered.task_id,
            "WORKER": client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers[0].address,
        }  # fmt: skip
        for left in (waiting, answered):
            with contextlib.suppress(InvalidState):  # the confirmed one has ended
                left.cancel()
        for hook in client.market("ListWebhooks", market_pb2.ListWebhooksRequest()).webhooks:
            client.market("RemoveWebhook", market_pb2.RemoveWebhookRequest(id=hook.id))


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "mesh")
def test_help_is_as_the_golden_file_says(mesh: Mesh, path: tuple[str, ...]) -> None:
    result = mesh(*path, "--help")
    assert result.returncode == 0
    compare(f"help/{'-'.join(path) or 'mesh'}.txt", "\n".join(map(str.rstrip, result.stdout.splitlines())) + "\n")


ERRORS = {
    "no-profile": ("task", "list"),
    "unknown-command": ("tsk", "list"),
    "unknown-profile": ("--profile", "nowhere", "task", "list"),
    "malformed-task": ("task", "get", "abcd"),
    "malformed-word": ("task", "submit", "noop", "jobs"),
    "malformed-deadline": ("task", "submit", "noop", "--deadline", "soon"),
    "missing-argument": ("task", "submit"),
    "unknown-field": ("profile", "set", "lab", "markt=127.0.0.1:1"),
    "not-running": ("--profile", "gone.toml", "task", "list"),
}
MARKET_ERRORS = {
    "bad-value": ("task", "submit", "synthetic", "matrix_size=0"),
    "unknown-type": ("task", "submit", "rendring", "a=1"),
    "too-dear": ("task", "submit", "synthetic", "matrix_size=4096", "--max-cost", "0.000001"),
    "too-little-money": ("task", "submit", "noop", "jobs=1", "--reward", "99999999"),
    "no-such-task": ("task", "get", UNKNOWN),
    "no-such-block": ("ledger", "block", "99999999"),
    "no-such-artifact": ("artifact", "get", UNKNOWN),
}


def scrubbed(text: str, home: str) -> str:
    """Without what differs from run to run: folders, ports, amounts of money, block heights."""
    text = text.replace(home, "HOME")
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST:PORT", text)
    text = re.sub(r"\bcpc1[02-9a-z]{38}\b", "ADDRESS", text)
    text = re.sub(r"(?<=_units\": )\"?\d+\"?", "N", text)
    return re.sub(r"\b\d[\d,]*\.\d+(?= CPC)|(?<=newest is )\d+", "N", text)


@pytest.mark.parametrize("name", [*ERRORS, *MARKET_ERRORS])
def test_errors_are_as_the_golden_files_say(
    mesh: Mesh, cluster: Cluster, name: str
) -> None:
    Path("gone.toml").write_text('market = "127.0.0.1:1"\napi_key = "k"\n')
    profile = cluster.profile.path if name in MARKET_ERRORS else None
    words = ERRORS.get(name) or MARKET_ERRORS[name]
    said = mesh(*words, profile=profile)
    assert said.returncode in (1, 2)
    assert said.stdout == ""
    document = json.loads(mesh(*words, "--json", profile=profile).stdout)
    home = str(Path.cwd())
    pretty = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True)
    compare(f"errors/{name}.txt", scrubbed(f"$ mesh {' '.join(words)}\n{said.stderr}\n{pretty}\n", home))


DOCUMENTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("task", "submit"): ("noop", "jobs=2", "--wait"), ("task", "get"): ("TASK",), ("task", "list"): ("--limit", "1"),
    ("task", "watch"): ("TASK",), ("task", "logs"): ("TASK",), ("task", "quote"): ("noop", "jobs=1"),
    ("task", "download"): ("TASK", "-o", "files"), ("task", "receipt"): ("TASK", "--out", "r.json"),
    ("artifact", "put"): ("put.txt",), ("artifact", "ls"): ("--limit", "1"), ("verify",): ("TASK",), ("top",): (),
    ("ledger", "block"): ("latest", "--full"), ("ledger", "account"): ("treasury",), ("ledger", "proof"): ("TASK", "0"),
    ("ledger", "checkpoint"): (), ("ledger", "supply"): (), ("ledger", "faucet"): ("1", "customer"),
    ("worker", "list"): (), ("worker", "drain"): ("worker-1", "--resume"), ("model", "ls"): (),
    ("model", "register"): ("golden", "DIGEST"),
    ("profile", "set"): ("lab", "market=127.0.0.1:1"), ("profile", "list"): (), ("profile", "token"): (),
    ("profile", "use"): ("golden",), ("doctor",): ("--no-jax",), ("program", "inspect"): ("PROGRAM",),
    ("explain",): ("task", "get", "TASK"),
    ("events",): ("--task", "TASK"), ("webhook", "add"): (NOWHERE, "--task", UNKNOWN),
    ("webhook", "list"): (), ("webhook", "remove"): ("WEBHOOK",), ("worker", "show"): ("WORKER",),
    ("worker", "opportunities"): (), ("function", "list"): (),
    ("task", "answers"): ("ANSWERED",), ("task", "confirm"): ("ANSWERED",),
    ("model", "list"): (), ("model", "show"): ("large",), ("model", "deactivate"): ("large",),
    ("model", "activate"): ("large",), ("pool", "open"): ("golden", "--category", "golden"),
    ("pool", "list"): (), ("pool", "fund"): ("golden", "1.0"), ("pool", "withdraw"): ("golden", "0.5"),
    ("pool", "deactivate"): ("golden",), ("pool", "activate"): ("golden",),
    ("stake", "add"): ("1.0",), ("stake", "remove"): ("0.5",), ("stake", "show"): (),
    ("key", "delegate"): (OWN.public.hex(),),
    ("authority", "pause"): (), ("authority", "resume"): (), ("validator", "run"): ("--key", "own.key", "--once"),
}  # fmt: skip
ELSEWHERE = {
    ("task", "cancel"): "tests/cli/test_commands.py: it ends a task, and prints the document of `task get`",
    ("task", "retract"): "tests/market/test_market_delivery.py: it has a moment only, and prints that document, too",
    ("artifact", "get"): "tests/artifacts/test_cluster.py: the document of `artifact put` and a path",
    ("artifact", "rm"): "tests/artifacts/test_cluster.py",
    ("ledger", "tiles"): "tests/cli/test_proofs.py",
    ("ledger", "relay"): "tests/cli/test_proofs.py",
    ("audit", "verify"): "tests/service/test_journal.py",
    ("db",): "tests/service/test_migrations.py",
    ("program", "push"): "the document of `program inspect`",
    ("dispute", "appeal"): "the document of `dispute show`",
}
IN_COURT = {("dispute", word) for word in ("open", "list", "show", "vote", "reveal")}
"""Held against their golden documents where there is something to contest: tests/e2e/test_disputes.py."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=" ".join)
def test_json_documents_have_the_shape_of_the_golden_file(
    mesh: Mesh, cluster: Cluster, given: dict[str, str], path: tuple[str, ...]
) -> None:
    Path("put.txt").write_text("golden")
    Path("own.key").write_text(OWN.secret.hex())
    if path[0] == "profile":
        assert mesh("profile", "set", "golden", "market=127.0.0.1:1").returncode == 0
    with Client(cluster.profile) as client:
        running = client.submit("synthetic", {"matrix_size": 1024, "iterations": 500}) if path == ("top",) else None
        words = (*path, *(given.get(word, word) for word in DOCUMENTS[path]), "--json")
        result = mesh(*words, profile=cluster.profile.path)
        if running is not None:
            running.cancel()
    if path == ("authority", "pause"):
        assert mesh("authority", "resume", profile=cluster.profile.path).returncode == 0
    assert result.returncode == 0, result.stdout
    assert result.stderr == ""
    compare_shape(f"json/{'-'.join(path)}.json", json.loads(result.stdout))


def test_every_command_with_json_has_a_golden_document_and_no_golden_file_is_left_over() -> None:
    missing = [" ".join(path) for path in WITH_JSON if path not in {*DOCUMENTS, *ELSEWHERE, *IN_COURT}]
    assert not missing, f"no golden document of: {missing}"
    names = {f"help/{'-'.join(path) or 'mesh'}.txt" for path in ALL}
    names |= {f"json/{'-'.join(path)}.json" for path in {*DOCUMENTS, *IN_COURT}}
    names |= {f"errors/{name}.txt" for name in (*ERRORS, *MARKET_ERRORS)}
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.*")} == names


def test_what_can_print_json_says_so() -> None:
    """Commands without --json start something and stay, or pass on another command's document."""
    without = {path for path, command in ALL.items() if not hasattr(command, "commands")} - set(WITH_JSON)
    assert without == {("up",), ("worker", "join")}
