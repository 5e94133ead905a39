"""Judging evidence: batches as workers sign them, openings, and jobs small enough to do again (PROTOCOL section 6).

Pure functions over bytes. `judge_opening` runs in a pool of threads: numpy and the hashes release the interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import groupby
from operator import itemgetter

from computemesh import workloads
from computemesh.trust import audit, merkle, statement
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, MeshError, Unauthorized
from computemesh.workloads.contract import Claim, JobSpec, Workload
from computemesh.workloads.outputs import Shown, bound

MAX_BATCH = 4096
_NO_OPENINGS = sha256(b"").digest()


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
    accepted, proofs = [], []
    for name, same in groupby(rows, key=itemgetter(0)):
        group = list(same)
        workload = workloads.get(name)
        found = workload.recompute([row[1] for row in group])
        for (_, spec, result_hash, k), digests in zip(group, found, strict=True):
            if len(digests) == audit.DIGEST_BYTES:
                good, units = merkle.leaf_hash(digests) == result_hash, 1
            else:
                layout = workload.layout(spec)
                good, units = audit.JobTree(layout, digests).result_hash == result_hash, layout.count
            accepted.append(good)
            proofs.append(tagged("computemesh.v1/transcript", result_hash + _whole(k, units, good)))
    return accepted, proofs


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
        _prove(workload, layout, spec, audit.sample(seed, leaf, layout.count, k), result_hash, data)
        problem = ""
    except (MeshError, ValueError, IndexError) as error:
        problem = str(error)[:200] or type(error).__name__
    accepted = not problem
    return accepted, audit.transcript_digest(result_hash, seed, k, layout.count, data, accepted), problem


Found = tuple[bool, bytes, str, bytes]
"""(accepted, transcript digest, why not, openings)"""


def judge_output(
    challenge_type: str, spec: JobSpec, leaf: bytes, seed: bytes, k: int, result_hash: bytes, data: bytes | None,
    shown: Shown | None,
) -> Found:
    """As `judge_opening`, and the output must lead to `result_hash`. `data` None: the units are taken from the output,
    and the openings are made here as the worker would have made them.
    """
    workload = workloads.get(challenge_type)
    layout = workload.layout(spec)
    asked = audit.sample(seed, leaf, layout.count, k)
    openings = data or b""
    try:
        tree = bound(workload, spec, result_hash, shown) if shown is not None else None
        if data is None:
            assert workload.output_units is not None
            assert shown is not None
            assert tree is not None
            units = workload.output_units(spec, shown.output, asked)
            pairs = zip(asked, units, strict=True)
            openings = audit.openings_bytes([tree.open(unit, shown_bytes) for unit, shown_bytes in pairs])
        _prove(workload, layout, spec, asked, result_hash, openings)
        problem = ""
    except (MeshError, ValueError, IndexError) as error:
        problem = str(error)[:200] or type(error).__name__
    accepted = not problem
    proof = audit.transcript_digest(result_hash, seed, k, layout.count, openings, accepted)
    return accepted, proof, problem, openings


def _prove(
    workload: Workload[object], layout: audit.Layout, spec: JobSpec, asked: list[int], result_hash: bytes, data: bytes
) -> None:
    openings = audit.parse_openings(data)
    if [opening.index for opening in openings] != asked:
        raise InvalidArgument(f"opens {len(openings)} units, not the {len(asked)} that were asked for, in their order")
    if workload.exact and any(opening.unit for opening in openings):
        raise InvalidArgument("carries unit bytes, which an exact task type has none of")
    claims = [
        Claim(opening.index, opening.unit, audit.verify_previous(layout, opening, result_hash)) for opening in openings
    ]
    digests = workload.expected_digests(spec, claims)
    for opening, digest in zip(openings, digests, strict=True):
        if digest is None or audit.fold_opening(layout, opening, digest) != result_hash:
            raise InvalidArgument(f"unit {opening.index} is not what was committed")


def needs(challenge_type: str, first: JobSpec) -> tuple[bool, bool, int]:
    """(binds, recomputed whole, k) of a task from its first job.

    A job that can only be checked once it is bound needs a binding (asked by checking no unit of it); one that is
    exact and has no more units than the sample is recomputed whole. Neither is for types that are judged in an audit
    process, because asking could load JAX here. Raises InvalidArgument where the job cannot be read either way.
    """
    workload = workloads.get(challenge_type)
    if apart(workload):
        workload.layout(first)
        return False, False, workload.sample_size
    binds = False
    try:
        workload.expected_digests(first, [])
    except InvalidArgument:
        workload.expected_digests(workloads.bind(first, bytes(32)), [])
        binds = True
    k = workload.sample_size
    return binds, workload.exact and workload.layout(first).count <= k, k


def apart(workload: Workload[object]) -> bool:
    """Whether a type's results are judged in an audit process: its check may need JAX, or reads what workers upload."""
    return not workload.exact or workload.output_bytes is not None
