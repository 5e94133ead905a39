"""Judging the answer to a challenge: what the auditor does, and whoever replays an audit.

Openings come in a message or, where they do not fit one, as a file that is mapped: of that only as many units are in
memory at once as `GROUP_BYTES` holds, or one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from computemesh.trust import audit
from computemesh.trust.audit import Layout, Opening
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads.contract import Claim, JobSpec, Workload

GROUP_BYTES = 1 << 24


def limit(workload: Workload[Any], spec: JobSpec, k: int) -> int:
    """The most bytes an answer to a challenge of `k` units of the job has as an artifact; 0 where none is taken."""
    if workload.unit_bytes is None:
        return 0
    return audit.openings_limit(min(k, workload.layout(spec).count), workload.unit_bytes(spec))


def prove(
    workload: Workload[Any], spec: JobSpec, layout: Layout, asked: Sequence[int], result_hash: bytes,
    data: bytes | mmap | Path,
) -> None:  # fmt: skip
    """Raises InvalidArgument or InvalidProof unless `data`, or the file it names, opens the units `asked` for, in
    order, each is right, and each leads to `result_hash`."""
    if isinstance(data, Path):
        with data.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            prove(workload, spec, layout, asked, result_hash, mapped)
        return
    for openings in _groups(asked, data):
        if workload.exact and any(opening.unit for opening in openings):
            raise InvalidArgument("carries unit bytes, which an exact task type has none of")
        claims = [Claim(one.index, one.unit, audit.verify_previous(layout, one, result_hash)) for one in openings]
        digests = workload.expected_digests(spec, claims)
        for opening, digest in zip(openings, digests, strict=True):
            if digest is None or audit.fold_opening(layout, opening, digest) != result_hash:
                raise InvalidArgument(f"unit {opening.index} is not what was committed")


def _groups(asked: Sequence[int], data: bytes | mmap) -> Iterator[list[Opening]]:
    group: list[Opening] = []
    size = count = 0
    for opening in audit.read_openings(data):
        if count == len(asked) or opening.index != asked[count]:
            raise InvalidArgument(f"opening {count} is of unit {opening.index}, not one of the {len(asked)} asked for")
        if group and size + len(opening.unit) > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(opening)
        size += len(opening.unit)
        count += 1
    if count != len(asked):
        raise InvalidArgument(f"opens {count} units, not the {len(asked)} that were asked for")
    if group:
        yield group
