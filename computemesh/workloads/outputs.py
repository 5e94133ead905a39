"""Holding an uploaded output against the committed root: what the auditor does, and whoever replays an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from computemesh.trust.audit import DIGEST_BYTES, JobTree
from computemesh.trust.errors import InvalidProof
from computemesh.workloads.contract import JobSpec, Workload


@dataclass(frozen=True, slots=True)
class Shown:
    """What a worker uploaded for a job: its output, and the digests of all its units (32 bytes each, in unit order)
    where it has several."""

    output: bytes
    unit_digests: bytes


def bound(workload: Workload[Any], spec: JobSpec, result_hash: bytes, shown: Shown) -> JobTree:
    """The job's tree, after every unit the output shows was found in it. Raises InvalidProof."""
    assert workload.output_bytes is not None
    assert workload.output_digests is not None
    limit = workload.output_bytes(spec)
    if len(shown.output) > limit:
        raise InvalidProof(f"the output has {len(shown.output):,} bytes, at most {limit:,} are taken")
    digests = workload.output_digests(spec, shown.output)
    layout, listed = workload.layout(spec), shown.unit_digests
    if len(digests) == layout.count:
        listed = b"".join(digests[unit] for unit in range(layout.count))
    elif len(listed) != DIGEST_BYTES * layout.count:
        raise InvalidProof(f"{len(listed):,} bytes are not the digests of {layout.count:,} units")
    tree = JobTree(layout, listed)
    if tree.result_hash != result_hash:
        raise InvalidProof("the output's units do not lead to the committed result hash")
    for unit, digest in digests.items():
        if listed[DIGEST_BYTES * unit : DIGEST_BYTES * (unit + 1)] != digest:
            raise InvalidProof(f"unit {unit} of the output is not what was committed")
    return tree
