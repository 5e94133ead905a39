"""Judging evidence: batches as workers sign them, openings, and jobs small enough to do again (PROTOCOL section 6).

Pure functions over bytes. `judge_opening` runs in a pool of threads: numpy and the hashes release the interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from computemesh import workloads
from computemesh.trust import audit, merkle, statement
from computemesh.trust.digest import tag_prefix
from computemesh.trust.errors import InvalidArgument, MeshError, Unauthorized
from computemesh.workloads.contract import JobSpec, Workload
from computemesh.workloads.openings import prove
from computemesh.workloads.outputs import Shown, bound

MAX_BATCH = 4096
_NO_OPENINGS = sha256(b"").digest()
_TRANSCRIPT = tag_prefix("computemesh.v1/transcript")
_BODY_BYTES = 32 + 32 + 4 + 8 + 32 + 1


def read_batch(
    key: bytes, chain: str, count: int, commitments: bytes, signature: bytes
) -> tuple[list[bytes], bytes]:
    """(Leaf hashes, root) of a worker's batch of `count` commitments, its one signature verified.

    Raises InvalidArgument where lengths do not fit, Unauthorized / INVALID_SIGNATURE where the key did not sign it.
    """
    if not 1 <= count <= MAX_BATCH:
        raise InvalidArgument(
            f"commitments.lease_ids has {count} items, must be 1..{MAX_BATCH}",
            violations=[("commitments.lease_ids", f"has {count} items, must be 1..{MAX_BATCH}")],
        )
    if len(commitments) != count * statement.COMMITMENT_SIZE:
        text = f"has {len(commitments)} bytes, must be {count} * {statement.COMMITMENT_SIZE}"
        raise InvalidArgument(f"commitments.commitments {text}", violations=[("commitments.commitments", text)])
    leaves = statement.leaves(commitments, statement.COMMITMENT_SIZE)
    root = merkle.root(leaves)
    if not statement.verify_commitments(key, chain, count, root, signature):
        raise Unauthorized(
            f"commitments.signature is not by {key.hex()} over these {count} commitments", reason="INVALID_SIGNATURE"
        )
    return leaves, root


def recompute(
    rows: Sequence[tuple[str, JobSpec, bytes, int]],
) -> tuple[list[bool], list[bytes]]:
    """Do jobs again: (task type, spec, committed result hash, k) of each -> verdicts and transcript digests."""
    accepted: list[bool] = []
    bodies: list[bytes] = []
    for name, same in groupby(rows, key=itemgetter(0)):
        group = list(same)
        workload = workloads.get(name)
        found = workload.recompute([row[1] for row in group])
        if all(len(digests) == audit.DIGEST_BYTES for digests in found):
            roots, counts = merkle.split(merkle.leaf_hashes(b"".join(found), audit.DIGEST_BYTES)), [1] * len(group)
        else:
            layouts = [workload.layout(row[1]) for row in group]
            roots = [audit.JobTree(*of).result_hash for of in zip(layouts, found, strict=True)]
            counts = [layout.count for layout in layouts]
        for (_, _, result_hash, k), root, units in zip(group, roots, counts, strict=True):
            accepted.append(root == result_hash)
            bodies.append(result_hash + _whole(k, units, root == result_hash))
    return accepted, merkle.split(merkle.hash_each(b"".join(bodies), _BODY_BYTES, _TRANSCRIPT))


@lru_cache(maxsize=1024)
def _whole(k: int, units: int, accepted: bool) -> bytes:
    """What follows the result hash in the transcript of a job that was recomputed whole."""
    return bytes(32) + k.to_bytes(4, "big") + units.to_bytes(8, "big") + _NO_OPENINGS + bytes([accepted])


def judge_opening(
    challenge_type: str, spec: JobSpec, leaf: bytes, seed: bytes, k: int, result_hash: bytes, data: bytes
) -> tuple[bool, bytes, str]:
    """Whether the openings `data` prove the challenged units of `result_hash`: (accepted, transcript digest, why not).

    `leaf` is the commitment's leaf hash. Nothing a worker sends raises; it is judged.
    """
    workload = workloads.get(challenge_type)
    layout = workload.layout(spec)
    try:
        prove(workload, spec, layout, audit.sample(seed, leaf, layout.count, k), result_hash, data)
        problem = ""
    except (MeshError, ValueError, IndexError) as error:
        problem = str(error)[:200] or type(error).__name__
    accepted = not problem
    return accepted, audit.transcript_digest(result_hash, seed, k, layout.count, data, accepted), problem


Found = tuple[bool, bytes, str, bytes]
"""(accepted, transcript digest, why not, openings); the last is empty where they are an artifact."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Openings that did not fit a message: their artifact's SHA-256, and where its bytes are."""

    digest: bytes
    path: Path


def judge_output(
    challenge_type: str, spec: JobSpec, leaf: bytes, seed: bytes, k: int, result_hash: bytes,
    data: bytes | Uploaded | None, shown: Shown | None,
) -> Found:
    """As `judge_opening`, and the output must lead to `result_hash`. `data` None: the units are taken from the output,
    and the openings are made here as the worker would have made them.
    """
    workload = workloads.get(challenge_type)
    layout = workload.layout(spec)
    asked = audit.sample(seed, leaf, layout.count, k)
    openings = data if isinstance(data, bytes) else b""
    try:
        tree = bound(workload, spec, result_hash, shown) if shown is not None else None
        if data is None:
            assert workload.output_units is not None
            assert shown is not None
            assert tree is not None
            units = workload.output_units(spec, shown.output, asked)
            pairs = zip(asked, units, strict=True)
            openings = audit.openings_bytes([tree.open(unit, shown_bytes) for unit, shown_bytes in pairs])
        answer = data.path if isinstance(data, Uploaded) else openings
        prove(workload, spec, layout, asked, result_hash, answer)
        problem = ""
    except (MeshError, ValueError, IndexError) as error:
        problem = str(error)[:200] or type(error).__name__
    accepted = not problem
    digest = data.digest if isinstance(data, Uploaded) else sha256(openings).digest()
    proof = audit.transcript_of(result_hash, seed, k, layout.count, digest, accepted)
    return accepted, proof, problem, openings


def whole(workload: Workload[object], first: JobSpec) -> bool:
    """Whether a task's jobs are recomputed whole, seen at its first: exact, and no more units than the sample. Raises
    InvalidArgument where the job cannot be read."""
    return workload.layout(first).count <= workload.sample_size and workload.exact and not apart(workload)


def apart(workload: Workload[object]) -> bool:
    """Whether a type's results are judged in an audit process: its check may need JAX, or reads what workers upload."""
    return not workload.exact or workload.output_bytes is not None
