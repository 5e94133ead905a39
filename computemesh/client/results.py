"""What a task left, on the caller's disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from computemesh.client.artifacts import AsyncArtifacts
from computemesh.client.model import Task, TaskFile
from computemesh.service.transfer import Progress
from computemesh.trust import folder
from computemesh.trust.errors import InvalidState


def plain_name(name: str, digest: str) -> str:
    """A file name that stays in its folder: names come from whoever wrote the task type, and are never paths."""
    found = PurePosixPath(name.replace("\\", "/")).name
    return found if found not in ("", ".", "..") and "\0" not in found else digest


def places(files: tuple[TaskFile, ...]) -> Iterator[tuple[TaskFile, str]]:
    """Each file with a name no other has."""
    taken: set[str] = set()
    for file in files:
        name = plain_name(file.name, file.digest)
        if name.lower() in taken:
            name = f"{file.digest[:12]}-{name}"
        taken.add(name.lower())
        yield file, name


def _silent(done: int, total: int) -> None:
    return None


async def download(artifacts: AsyncArtifacts, task: Task, to: Path, progress: Progress = _silent) -> list[Path]:
    """Write a task's files into the folder `to`; they are checked by their digests. Raises InvalidState for a task
    without files, InvalidArgument where the folder cannot be written."""
    if not task.artifacts:
        why = "has no files" if task.ended else f"is {task.status}: its files are there once it has completed"
        raise InvalidState(f"task {task.task_id[:12]}.. {why}")
    await asyncio.to_thread(to.mkdir, parents=True, exist_ok=True)
    total, done = sum(file.size for file in task.artifacts), 0
    written = []
    for file, name in places(task.artifacts):
        begun = done
        as_file = file.media_type != folder.MEDIA_TYPE
        written.append(await artifacts.get(
            file.digest, to / name, as_file=as_file, progress=lambda now, _: progress(begun + now, total)))  # noqa: B023
        done += file.size
    return written
