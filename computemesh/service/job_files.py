"""What a job reads, as it goes to the process that runs or judges it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from computemesh.service.artifact_cache import LocalFiles
from computemesh.trust.errors import NotFound


@dataclass(frozen=True, slots=True)
class JobFiles:
    """`workloads.contract.Files` over a cache folder. `outputs` are the artifacts (SHA-256, 32 bytes) of other jobs of
    the task; they are read when asked for."""

    local: LocalFiles
    outputs: dict[int, bytes] = field(default_factory=dict)

    def artifact(self, digest: bytes) -> Path:
        """As `LocalFiles.artifact`."""
        return self.local.artifact(digest)

    def folder(self, digest: bytes) -> Path:
        """As `LocalFiles.folder`."""
        return self.local.folder(digest)

    def result(self, job: int) -> bytes:
        """The output of another job. Raises NotFound."""
        digest = self.outputs.get(job)
        if digest is None:
            raise NotFound(f"the output of job {job} is not at hand", reason="RESULT_NOT_FOUND")
        return self.local.artifact(digest).read_bytes()
