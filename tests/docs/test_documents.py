"""Every command and every Python block of README.md and docs/ is run, in the order in which it is read."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.cli.main import main
from computemesh.cli.terms import responses_to
from computemesh.client import Client
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import orchestrator_pb2
from tests.docs.blocks import Code, code

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [piece for page in PAGES for piece in code(page, str(page.relative_to(ROOT)))]

ELSEWHERE = {
    r"mesh up\b": "stays until Ctrl-C: tests/cli/test_up.py",
    r"mesh worker join": "stays until Ctrl-C: tests/docs/conftest.py and tests/cli/test_commands.py start it",
    r"mesh ledger relay": "tests/cli/test_proofs.py",
    r"mesh db ": "needs a stopped service: tests/service/test_migrations.py",
    r"mesh audit verify": "needs administrative acts: tests/service/test_journal.py",
    r"examples/cpp": "tests/client/test_cpp.py",
    r"node worker\.js|statistics": "tests/client/test_node_worker.py",
    r"python -m edge": "stays until Ctrl-C: tests/edge/test_rest.py",
    r"npm install|node publish\.js": "tests/client/test_node.py",
    r"mesh task submit (inference|training)\b": "needs a model or data set of the reader's own: "
                                               "tests/workloads, make demo-all",
    r"mesh program push model\.py|mesh task submit program": "in the long test below",
    r"mesh artifact put (inputs|ring)\.npz": "in the long test below",
    r"mesh dispute (open|vote|appeal)|mesh validator run": "needs something to contest: tests/e2e/test_disputes.py, "
                                                           "tests/ledger/test_economy.py",
    r"mesh task retract": "has a moment only: tests/market/test_market_delivery.py",
    r"mesh webhook add": "needs a server others see: tests/market/test_market_feed.py",
    r"rendering": "in the long test below",
    r"mesh task submit simulation --payload": "in the long test below",
}  # fmt: skip
"""What is not run here, by pattern, and where it is run instead. Targets of `make` are looked up: the CI runs them."""
PAGES_ELSEWHERE = {
    "docs/adding-a-task-type.md": "tests/docs/test_tutorial.py",
    "docs/verify-it-yourself.md": "tests/verifiers/test_strangers.py",
}


def reason(piece: Code) -> str:
    found = [why for pattern, why in ELSEWHERE.items() if re.search(pattern, piece.text)]
    return found[0] if found else PAGES_ELSEWHERE.get(piece.file, "")


HERE = [piece for piece in CODE if not reason(piece)]


@pytest.fixture(scope="module")
def task(cluster: Cluster) -> Iterator[str]:
    """What the documents call TASK."""
    with Client(cluster.profile) as client:
        yield client.run("synthetic", {"matrix_size": 1024, "jobs": 2}, timeout=120).task_id


def answered(cluster: Cluster) -> str:
    """A task whose answer waits for its customer."""
    with Client(cluster.profile) as client:
        task = client.submit("noop", {"jobs": 1}, "1.0", delivery="manual", confirm_window_s=600).task_id
        until = time.monotonic() + 60
        while not responses_to(client, task):
            assert time.monotonic() < until
            time.sleep(0.05)
    return task


def stored(cluster: Cluster) -> str:
    with Client(cluster.profile) as client:
        return client.put_artifact(b"weights").digest


def worker(cluster: Cluster) -> str:
    with Client(cluster.profile) as client:
        workers = client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers
        return str(workers[0].address)


PLACEHOLDERS: dict[str, Callable[[Cluster], str]] = {
    "DIGEST": stored, "ADDRESS": worker, "PUBLICKEY": lambda _: PrivateKey.from_bytes(bytes([7]) * 32).public.hex()}


def filled_in(command: str, cluster: Cluster, task: str) -> str:
    """A command with what its capital words stand for."""
    command = command.replace(".venv/bin/", "")
    if "task cancel" in command:
        with Client(cluster.profile) as client:
            task = client.submit("synthetic", {"matrix_size": 1024, "iterations": 500}).task_id
    if "task confirm" in command:
        task = answered(cluster)
    for word, found in PLACEHOLDERS.items():
        if re.search(rf"\b{word}\b", command):
            command = command.replace(word, found(cluster))
    if "3f9ab2" in command:
        with Client(cluster.profile) as client:
            stored = next(one.digest for one in client.list_artifacts() if one.name == "model")
        command = command.replace("3f9ab2", stored[:12]).replace("-o model", "-o fetched")
    return re.sub(r"\bTASK(_ID)?\b(?!=)", task, command)


def run_here(command: str, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """A `mesh` command in this process: its exit status and what it said."""
    monkeypatch.setenv("COMPUTEMESH_PROFILE", cluster.profile.path)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr("sys.argv", shlex.split(command, comments=True))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), said.getvalue()  # type: ignore[call-overload]


def run_python(piece: Code, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block, as a script of its own."""
    monkeypatch.setenv("COMPUTEMESH_PROFILE", cluster.profile.path)
    exec(compile(piece.text, piece.place, "exec"), {})


@pytest.mark.parametrize("piece", HERE, ids=lambda piece: f"{piece.place} {piece.text[:40]}")
def test_what_the_documents_say_to_type_works(
    piece: Code, cluster: Cluster, task: str, folder: Path, functions: None, monkeypatch: pytest.MonkeyPatch,
    bash: Callable[[str], CompletedProcess[str]],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    if piece.kind == "python":
        run_python(piece, cluster, monkeypatch)
        return
    command = filled_in(piece.text, cluster, task)
    if command.startswith("make "):
        words = ["make", "-n", *shlex.split(command, comments=True)[1:]]
        found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
    elif command.startswith("mesh "):
        status, said = run_here(command, cluster, folder, monkeypatch)
        assert status == 0, f"{command}\n{said}"
        if "drain worker-1" in command:
            run_here("mesh worker drain worker-1 --resume", cluster, folder, monkeypatch)
    else:
        done = bash(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_no_reason_is_left_without_the_command_it_was_for() -> None:
    for pattern in ELSEWHERE:
        assert any(re.search(pattern, piece.text) for piece in CODE), pattern
    assert len(HERE) > 45


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"`[^`]*`", "", page.read_text("utf-8"))
        for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_fits_on_one_screen() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 60


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_larger_tasks_of_the_documents_complete(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.docs.conftest import write_arrays, write_ring

    monkeypatch.chdir(folder)
    write_arrays(folder / "inputs.npz")
    write_ring(folder / "ring.npz")
    given: dict[str, str] = {}
    larger = [piece for piece in CODE if reason(piece) == "in the long test below"]
    assert len(larger) == 10
    for piece in larger:
        if piece.kind == "python":
            run_python(piece, cluster, monkeypatch)
            continue
        command = piece.text.partition("   #")[0].replace(".venv/bin/", "")
        for placeholder, value in given.items():
            command = command.replace(placeholder, value)
        command += " --wait --reward 300" if "task submit" in command else ""
        status, said = run_here(command, cluster, folder, monkeypatch)
        assert status == 0, f"{command}\n{said}"
        for makes, placeholder in (("program push", "8a51..."), ("put inputs", "77c0..."), ("put ring", "<sha256>")):
            if makes in command:
                given[placeholder] = re.findall(r"\b[0-9a-f]{64}\b", said)[0]
