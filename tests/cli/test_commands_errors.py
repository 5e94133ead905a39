"""How the `mesh` command fails: one line or one JSON document, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from computemesh.cli import task
from computemesh.cli.cluster import Cluster
from computemesh.client.ids import uuid7
from tests.client.fake_market import FakeMarket, Running, ended, event

Mesh = Callable[..., CompletedProcess[str]]
T = "ab" * 32


@pytest.fixture
def running() -> Iterator[Running]:
    market = Running()
    yield market
    market.close()


@pytest.fixture
def market(running: Running) -> FakeMarket:
    return running.market


@pytest.fixture
def profile(running: Running, tmp_path: Path) -> str:
    path = tmp_path / "fake.toml"
    path.write_text(f'market = "{running.address}"\napi_key = "k"\n')
    return str(path)


def error_of(result: CompletedProcess[str]) -> Any:
    """The error in the one JSON document on stdout."""
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("task", "submit", "noop", "a=" + "[" * 50_000), "nested too deeply"),
        (("task", "submit", "noop", "--payload", "[" * 50_000), "nested too deeply"),
        (("task", "submit", "noop", "--deadline", f"+{'9' * 5000}d"), "neither Unix seconds"),
        (("task", "watch", T, "--cursor", "9" * 23), "less than or equal to 18446744073709551615"),
        (("ledger", "proof", T, "99999999999"), "less than or equal to 4294967295"),
        (("ledger", "block", "9" * 5000), "beyond any block"),
        (("task", "get", "abcd1234"), "64 hexadecimal characters"),
        (("task", "list", "--nix"), "--nix"),
        (("ledger", "checkpoint", "more"), "more"),
        (("nothing",), "nothing"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_wrong_command_line_is_one_document_with_json(mesh: Mesh, words: tuple[str, ...], says: str) -> None:
    result = mesh(*words, "--json")
    error = error_of(result)
    assert (result.returncode, error["reason"], result.stderr) == (2, "USAGE", "")
    assert says in error["message"]
    assert len(error["message"]) < 300
    text = mesh(*words)
    assert (text.returncode, text.stdout) == (2, "")
    assert "Traceback" not in text.stderr


def test_json_after_the_end_of_options_is_a_word(mesh: Mesh) -> None:
    result = mesh("task", "submit", "noop", "--", "--json")
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.parametrize("key", ["schlüssel", "two\\nlines"])
def test_an_api_key_no_header_can_carry_is_named(mesh: Mesh, tmp_path: Path, key: str) -> None:
    (tmp_path / "bad.toml").write_text(f'market = "127.0.0.1:1"\napi_key = "{key}"\n', "utf-8")
    result = mesh("task", "list", "--json", profile=str(tmp_path / "bad.toml"))
    assert (result.returncode, error_of(result)["violations"][0]["field"]) == (1, "api_key")


def test_what_nobody_expected_is_one_line_or_one_document(
    mesh: Mesh, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall(*_: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(task, "connect", fall)
    result = mesh("task", "list", profile=profile)
    assert (result.returncode, result.stdout) == (1, "")
    said = "ZeroDivisionError: by zero; run with MESH_DEBUG=1 for the traceback"
    assert result.stderr == f"mesh: INTERNAL: {said}\n"
    document = mesh("task", "list", "--json", profile=profile)
    assert (document.returncode, error_of(document)["message"]) == (1, said)
    monkeypatch.setenv("MESH_DEBUG", "1")
    assert "Traceback" in mesh("task", "list", profile=profile).stderr


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
@pytest.mark.parametrize("words", ["--version", "task list --json"])
def test_a_stdout_that_cannot_be_written_is_one_line(profile: str, redirect: str, words: str) -> None:
    command = f"exec {sys.executable} -m computemesh.cli {words} {redirect}"
    environment = {**os.environ, "COMPUTEMESH_PROFILE": profile}
    result = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("mesh: OUTPUT: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_wait_that_ends_too_early_names_the_whole_task(mesh: Mesh, market: FakeMarket, profile: str) -> None:
    market.watches = [[event(1), "wait"]]
    words = ("task", "submit", "noop", "jobs=1", "--wait", "--timeout", "0.3")
    result = mesh(*words, "--json", profile=profile)
    error = error_of(result)
    made = next(iter(market.tasks.values())).task_id
    assert (result.returncode, error["reason"], error["metadata"]) == (1, "DEADLINE_EXCEEDED", {"task_id": made})
    assert f"the task goes on, follow it with: mesh task watch {made}" in error["message"]


@pytest.mark.parametrize("words", [("submit", "noop", "jobs=1", "--wait"), ("watch", T)], ids=["submit", "watch"])
def test_an_interrupted_command_prints_one_document_and_exits_130(
    mesh_process: Callable[..., Popen[str]], market: FakeMarket, profile: str, words: tuple[str, ...]
) -> None:
    market.watches = [[event(1), "wait"]]
    process = mesh_process("task", *words, "--json", profile=profile)
    until = time.monotonic() + 60
    while not market.named("WatchTask"):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    error = error_of(CompletedProcess(words, process.returncode, out, err))
    made = next((one.task_id for one in market.tasks.values()), T)
    assert (process.returncode, error["reason"], error["metadata"]) == (130, "INTERRUPTED", {"task_id": made})
    assert f"{made} goes on" in error["message"]


def test_a_watch_after_the_last_event_prints_the_end(mesh: Mesh, market: FakeMarket, profile: str) -> None:
    market.watches = [[event(1), ended(2)]]
    result = mesh("task", "watch", T, "--cursor", "2", profile=profile)
    assert (result.returncode, result.stdout) == (0, f"task {T} is completed; it has no events after 2\n")
    document = json.loads(mesh("task", "watch", T, "--cursor", "2", "--json", profile=profile).stdout)
    assert (document["status"], document["events"]) == ("completed", [])


def test_a_request_id_typed_twice_is_sent_twice_the_same(mesh: Mesh, market: FakeMarket, profile: str) -> None:
    words = ("task", "submit", "noop", "jobs=1", "--request-id", "0198c0de-0000-7000-8000-00000000000b", "--json")
    made = [json.loads(mesh(*words, profile=profile).stdout)["task_id"] for _ in range(2)]
    assert made[0] == made[1]
    first, second = market.named("CreateTask")
    assert first == second
    refused = mesh("task", "submit", "noop", "--deadline", "0", "--json", profile=profile)
    assert (refused.returncode, error_of(refused)["violations"][0]["field"]) == (1, "deadline")
    assert len(market.named("CreateTask")) == 2


def test_a_real_market_keeps_the_deadline_and_tells_the_end(cluster: Cluster, mesh: Mesh) -> None:
    path = cluster.profile.path
    words = ("task", "submit", "noop", "jobs=1", "--request-id", str(uuid.UUID(bytes=uuid7())), "--json")
    made = json.loads(mesh(*words, "--wait", profile=path).stdout)
    time.sleep(1.1)  # another second, which would be another default deadline
    again = json.loads(mesh(*words, profile=path).stdout)
    assert (again["task_id"], again["deadline"]) == (made["task_id"], made["deadline"])
    events = json.loads(mesh("task", "watch", made["task_id"], "--json", profile=path).stdout)["events"]
    began = time.monotonic()
    rest = mesh("task", "watch", made["task_id"], "--cursor", str(events[-1]["cursor"]), profile=path)
    assert (rest.returncode, "is completed" in rest.stdout) == (0, True)
    assert time.monotonic() - began < 2
