"""The process that judges what may need JAX, reads what workers upload, and puts task files together.

Started by `orchestrator.audits`; it may hang or die without harm. JAX, where a task type imports it, runs on the CPU:
an auditor is not a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from computemesh import workloads
from computemesh.service.child import Link
from computemesh.service.job_files import JobFiles
from computemesh.trust.errors import MeshError
from computemesh.workloads.contract import Artifact, JobResult, JobSpec
from computemesh.workloads.outputs import Shown
from orchestrator import audit

MAX_TEXT = 1024
Payload = Mapping[str, object]


def judge(
    challenge_type: str, spec: JobSpec, leaf: bytes, seed: bytes, k: int, result_hash: bytes, openings: bytes | None,
    output: bytes, unit_digests: bytes, uploaded: bytes = b"",
) -> audit.Found:
    """`audit.judge_output` on files: `output`, `unit_digests` and `uploaded` (openings that did not fit a message) are
    artifacts' SHA-256, empty where there are none."""
    files, shown = spec.files, None
    opened: bytes | audit.Uploaded | None = openings
    if output:
        assert files is not None
        listed = files.artifact(unit_digests).read_bytes() if unit_digests else b""
        shown = Shown(files.artifact(output).read_bytes(), listed)
    if uploaded:
        assert files is not None
        opened = audit.Uploaded(uploaded, files.artifact(uploaded))
    return audit.judge_output(challenge_type, spec, leaf, seed, k, result_hash, opened, shown)


def assemble(challenge_type: str, payload: Payload, hashes: bytes, files: JobFiles) -> list[Artifact]:
    """The task's files from its verified outputs; `hashes` are the jobs' result hashes in order, 32 bytes each."""
    workload = workloads.get(challenge_type)
    count = len(hashes) // 32
    results = [
        JobResult(hashes[32 * job : 32 * job + 32], files.result(job) if job in files.outputs else b"")
        for job in range(count)
    ]
    return workload.assemble(workload.parse(payload), results)


def preview(challenge_type: str, payload: Payload, files: JobFiles) -> Artifact | None:
    """A file to look at, from the outputs there are so far."""
    workload = workloads.get(challenge_type)
    assert workload.preview is not None
    return workload.preview(workload.parse(payload), {job: files.result(job) for job in sorted(files.outputs)})


WORK: dict[str, Callable[..., Any]] = {"judge": judge, "assemble": assemble, "preview": preview}


def main(fd: int, settings: dict[str, Any]) -> None:
    """Serve the orchestrator at the other end of socket `fd` until it closes."""
    link = Link.inherited(fd)
    link.send(("ready", settings["number"]))
    while True:
        what, arguments = link.inbox.get()
        try:
            link.send(("done", WORK[what](*arguments)))
        except MeshError as error:
            link.send(("failed", str(error)[:MAX_TEXT]))
        except Exception as error:
            link.send(("failed", f"{type(error).__name__}: {error}"[:MAX_TEXT]))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
