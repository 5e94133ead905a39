"""`python -m worker` as its owner sees it: a real process that is signalled and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.worker.scripted import Orchestrator, jobs_of, until

ROOT = Path(__file__).resolve().parents[2]
LONG = {"matrix_size": 512, "iterations": 1024}


@pytest.fixture
async def orchestrator() -> AsyncIterator[Orchestrator]:
    scripted = Orchestrator()
    await scripted.start()
    yield scripted
    await scripted.stop()


def launch(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worker", "--config", str(folder / "worker.toml")]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stderr=log)


@asynccontextmanager
async def started(orchestrator: Orchestrator, folder: Path, **more: object) -> AsyncIterator[subprocess.Popen[bytes]]:
    lines = [f'orchestrator = "127.0.0.1:{orchestrator.port}"', f'data_dir = "{folder}"', 'platform = "cpu"']
    lines += [f"{name} = {value}" for name, value in more.items()]
    (folder / "worker.toml").write_text("\n".join(lines))
    process = launch(folder)
    try:
        await until(lambda: orchestrator.capabilities or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.wait()


async def ended(process: subprocess.Popen[bytes], seconds: float = 10.0) -> int:
    await until(lambda: process.poll() is not None, seconds)
    return process.wait()


def at_work(orchestrator: Orchestrator) -> bool:
    """Whether the worker has told that it holds a job: one that was sent may still be under way."""
    return any(beat.running_lease_ids for beat in orchestrator.heartbeats)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def test_the_agent_imports_no_jax() -> None:
    code = "import sys, worker.agent, worker.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


async def test_sigterm_finishes_what_is_held_says_goodbye_and_exits_0(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    orchestrator.queue.extend(jobs_of("synthetic", bytes(32), matrix_size=512, iterations=40))
    async with started(orchestrator, tmp_path) as process:
        await until(lambda: at_work(orchestrator))
        process.send_signal(signal.SIGTERM)
        assert await ended(process, 30) == 0
    assert len(orchestrator.settled) == 1, "the job under way was finished and its challenge answered"
    assert orchestrator.goodbyes == ["drained"]
    assert not orchestrator.nacks


async def test_what_cannot_be_finished_in_time_is_handed_back(orchestrator: Orchestrator, tmp_path: Path) -> None:
    orchestrator.queue.extend(jobs_of("synthetic", bytes(32), **LONG))
    orchestrator.requeue_nacks = False
    async with started(orchestrator, tmp_path, drain_timeout_ms=300) as process:
        await until(lambda: at_work(orchestrator))
        process.send_signal(signal.SIGINT)
        assert await ended(process) == 0
        await until(lambda: orchestrator.nacks)
    assert [nack.reason for nack in orchestrator.nacks] == ["DRAINING"]


async def test_a_second_signal_ends_it_at_once(orchestrator: Orchestrator, tmp_path: Path) -> None:
    orchestrator.queue.extend(jobs_of("synthetic", bytes(32), **LONG))
    async with started(orchestrator, tmp_path) as process:
        await until(lambda: at_work(orchestrator))
        executors = children(process)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert await ended(process, 2) == 130
        await until(lambda: not any(map(psutil.pid_exists, executors)), 5)


async def test_a_killed_agent_leaves_no_executor_behind_even_in_the_middle_of_a_job(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    orchestrator.queue.extend(jobs_of("synthetic", bytes(32), **LONG))
    async with started(orchestrator, tmp_path) as process:
        await until(lambda: at_work(orchestrator))
        executors = children(process)
        assert len(executors) == 1
        os.kill(process.pid, signal.SIGKILL)
        await ended(process)
        await until(lambda: not any(map(psutil.pid_exists, executors)), 5)


async def test_a_killed_agent_started_again_goes_on_with_fresh_nonces(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    for round_number in range(2):
        orchestrator.queue.extend(jobs_of("noop", bytes([round_number]) * 32, jobs=30))
        async with started(orchestrator, tmp_path) as process:
            await until(lambda count=30 * (round_number + 1): len(orchestrator.settled) == count)
            os.kill(process.pid, signal.SIGKILL)
            await ended(process)
    assert len(set(orchestrator.nonces)) == 60


async def test_sigterm_while_no_orchestrator_answers_exits_0(orchestrator: Orchestrator, tmp_path: Path) -> None:
    async with started(orchestrator, tmp_path) as process:
        await orchestrator.stop()
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0


async def test_a_configuration_mistake_is_one_line_on_stderr(orchestrator: Orchestrator, tmp_path: Path) -> None:
    async with started(orchestrator, tmp_path, depth=3) as process:
        assert await ended(process) == 1
    assert (tmp_path / "log").read_text().count("\n") == 1
    assert "depth" in (tmp_path / "log").read_text()
