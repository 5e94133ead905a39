"""What a task left: its files chosen, decoded, or written to the caller's disk."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from computemesh.client.artifacts import AsyncArtifacts
from computemesh.client.model import Task, TaskFile
from computemesh.service.transfer import Progress
from computemesh.trust import folder
from computemesh.trust.errors import InvalidState, NotFound, TaskFailed

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

LINES = "application/jsonl"
IMAGES = ("image/png", "image/webp", "image/jpeg")
JSON = ("application/json", LINES)
TEXTS = ("text/", *JSON)
ARRAYS = ("application/x-npz", "application/x-npy")


def completed(task: Task) -> None:
    """Raises TaskFailed, with the market's reason, where a task is anything but completed."""
    if task.status != "completed":
        why = f": {task.status_detail}" if task.status_detail else ""
        raise TaskFailed(f"task {task.task_id[:12]}.. is {task.status}{why}",
                         metadata={"task_id": task.task_id, "status": task.status})  # fmt: skip


def named(task: Task, name: str) -> TaskFile:
    """The file of that name. Raises TaskFailed, NotFound listing the names."""
    completed(task)
    found = next((file for file in task.artifacts if file.name == name), None)
    if found is None:
        raise _no_file(task, repr(name))
    return found


def pick(task: Task, name: str | None, kinds: tuple[str, ...]) -> TaskFile:
    """The file of that name, else the first whose media type begins with one of `kinds`. Raises as `named`."""
    if name is not None:
        return named(task, name)
    completed(task)
    found = next((file for file in task.artifacts if file.media_type.startswith(kinds)), None)
    if found is None:
        raise _no_file(task, " or ".join(kinds))
    return found


def _no_file(task: Task, what: str) -> NotFound:
    names = ", ".join(f"{file.name} ({file.media_type})" for file in task.artifacts) or "none"
    return NotFound(f"task {task.task_id[:12]}.. has no file {what}; its files: {names}", reason="FILE_NOT_FOUND")


def image_of(data: bytes) -> Image.Image:
    """A picture, decoded. Raises PIL's error where the bytes are none."""
    from PIL import Image

    found = Image.open(io.BytesIO(data))
    found.load()
    return found


def json_of(data: bytes, media_type: str) -> Any:
    """A JSON value, or a list of those of JSON Lines."""
    if media_type == LINES:
        return [json.loads(line) for line in data.splitlines() if line]
    return json.loads(data)


def text_of(data: bytes, generated: bool) -> str:
    """UTF-8 text; `generated`: the `text` of each JSON line instead, where they have one."""
    texts = [item["text"] for item in json_of(data, LINES) if "text" in item] if generated else []
    return "\n".join(texts) if texts else data.decode("utf-8")


def arrays_of(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays by name, "array" for a single one. Never runs pickles."""
    import numpy as np

    found = np.load(io.BytesIO(data), allow_pickle=False)
    return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {"array": found}


def plain_name(name: str, digest: str) -> str:
    """A file name that stays in its folder: names come from whoever wrote the task type, and are never paths."""
    found = PurePosixPath(name.replace("\\", "/")).name
    return found if found not in ("", ".", "..") and "\0" not in found else digest


def places(files: tuple[TaskFile, ...]) -> Iterator[tuple[TaskFile, str]]:
    """Each file with a name no other has."""
    taken: set[str] = set()
    for file in files:
        name = plain_name(file.name, file.digest)
        while name.lower() in taken:
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
