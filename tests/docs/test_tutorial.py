"""docs/adding-a-task-type.md: its file is written, registered, run through a cluster, audited and replayed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster
from tests.docs.blocks import code

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "adding-a-task-type.md"
FILE, LAWS, *COMMANDS = code(PAGE, PAGE.name)
# Python imports `sitecustomize` at start-up: every process sees the folder as a part of the package's own.
JOIN = "import computemesh.workloads\ncomputemesh.workloads.__path__.append({folder!r})\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the tutorial's file, which stands for computemesh/workloads in every process started meanwhile."""
    here = tmp_path_factory.mktemp("tutorial")
    (here / "primes.py").write_text(FILE.text + "\n")
    (here / "site").mkdir()
    (here / "site" / "sitecustomize.py").write_text(JOIN.format(folder=str(here)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(here / "site"), str(ROOT))))
        yield here


@pytest.fixture(scope="module")
def cluster(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A mesh of one worker that knows the new type."""
    with Cluster(tmp_path_factory.mktemp("primes"), workers=1, port_base=0) as running:
        yield running


def python(*arguments: str, cwd: Path, **variables: str) -> CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env={**os.environ, **variables}, text=True,
                          capture_output=True, timeout=120, check=False)  # fmt: skip


def test_the_tutorials_own_checks_hold(folder: Path) -> None:
    done = python("-c", LAWS.text, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_the_new_type_is_quoted_run_audited_refused_and_replayed(folder: Path, cluster: Cluster) -> None:
    assert [piece.text.split()[1:3] for piece in COMMANDS] == [
        ["task", "quote"], ["task", "submit"], ["task", "submit"], ["verify", "TASK"]]  # fmt: skip
    task_id, said = "", []
    for piece in COMMANDS:
        words = piece.text.replace("TASK", task_id).split()[1:]
        done = python("-m", "computemesh.cli", *words, cwd=folder, COMPUTEMESH_PROFILE=cluster.profile.path)
        said.append((done.returncode, done.stdout + done.stderr))
        with contextlib.suppress(IndexError):
            task_id = task_id or re.findall(r"^task +([0-9a-f]{64})", done.stdout, re.M)[0]
    assert [status for status, _ in said] == [0, 0, 1, 0], said
    assert json.loads((folder / "answer" / "primes.json").read_text())["primes"] == 78498
    refusal = "limit must be a whole number from 10,000 to 1,000,000,000, not 7"
    assert refusal in said[2][1]
    assert refusal in " ".join(PAGE.read_text().split())
    assert "replay" in said[3][1]
    assert said[3][1].splitlines()[-1] == "verified"


def test_importing_the_new_type_imports_no_jax(folder: Path) -> None:
    probe = "import sys; from computemesh import workloads; workloads.get('primes'); sys.exit('jax' in sys.modules)"
    done = python("-c", probe, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_the_file_is_as_clean_as_the_others() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff), "check", "--stdin-filename", "computemesh/workloads/primes.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=FILE.text + "\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
