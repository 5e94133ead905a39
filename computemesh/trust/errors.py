"""The error tree: one class per reason a call can fail, each with its gRPC status name.

Core code raises these; a service maps them to `google.rpc.Status` once, and a client maps them back with
`from_reason`. Nothing here imports grpc, so the pure packages may raise them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


class MeshError(Exception):
    """Any refusal by a computemesh service or check.

    `reason` is a stable UPPER_SNAKE name (`ErrorInfo.reason`), `status` a gRPC status name, `violations`
    pairs of (field path, description), `metadata` machine-readable details, `retry_after_ms` milliseconds
    after which a retry makes sense, None where the error gives no such promise.
    """

    reason: str = "INTERNAL"
    status: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        violations: Iterable[tuple[str, str]] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations: list[tuple[str, str]] = list(violations)
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_ms = retry_after_ms
        if reason is not None:
            self.reason = reason

    def __str__(self) -> str:
        return self.message


class InvalidArgument(MeshError):
    """The request is wrong whatever the state of the system; `violations` name the fields."""

    status = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class InvalidProof(InvalidArgument):
    """A signature, path, layout or transcript does not show what it claims."""

    status = "INVALID_ARGUMENT"
    reason = "INVALID_PROOF"


class DigestMismatch(InvalidProof):
    """Bytes are not those their digest promised."""

    status = "INVALID_ARGUMENT"
    reason = "DIGEST_MISMATCH"


class NotFound(MeshError):
    """The named thing does not exist."""

    status = "NOT_FOUND"
    reason = "NOT_FOUND"


class TaskNotFound(NotFound):
    """No task has this id."""

    status = "NOT_FOUND"
    reason = "TASK_NOT_FOUND"


class AlreadyExists(MeshError):
    """The thing exists already."""

    status = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class Conflict(AlreadyExists):
    """The id was used before with another body."""

    status = "ALREADY_EXISTS"
    reason = "ID_CONFLICT"


class InvalidState(MeshError):
    """The request is well formed, but not in the present state."""

    status = "FAILED_PRECONDITION"
    reason = "INVALID_STATE"


class TaskFailed(InvalidState):
    """The task ended in another way than completed: it failed, expired or was cancelled."""

    status = "FAILED_PRECONDITION"
    reason = "TASK_FAILED"


class TaskExpired(InvalidState):
    """The task's deadline has passed."""

    status = "FAILED_PRECONDITION"
    reason = "TASK_EXPIRED"


class TaskAlreadyClaimed(InvalidState):
    """Another party holds the lease."""

    status = "FAILED_PRECONDITION"
    reason = "TASK_ALREADY_CLAIMED"


class TaskNotClaimed(InvalidState):
    """The caller holds no lease on the task."""

    status = "FAILED_PRECONDITION"
    reason = "TASK_NOT_CLAIMED"


class InsufficientFunds(InvalidState):
    """The account's free balance does not cover the amount."""

    status = "FAILED_PRECONDITION"
    reason = "INSUFFICIENT_FUNDS"


class CostLimit(InvalidState):
    """The price is above what the caller would pay at most; nothing was held."""

    status = "FAILED_PRECONDITION"
    reason = "COST_LIMIT"


class Unauthorized(MeshError):
    """The caller is known and may not do this."""

    status = "PERMISSION_DENIED"
    reason = "UNAUTHORIZED"


class Unauthenticated(MeshError):
    """The caller did not prove who it is."""

    status = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class ResourceExhausted(MeshError):
    """A quota, rate or size limit is reached."""

    status = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"


class Unavailable(MeshError):
    """The service cannot answer now; retrying is safe."""

    status = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class DeadlineExceeded(MeshError):
    """The call's deadline passed first; what it asked for may have happened."""

    status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Internal(MeshError):
    """A fault of the service itself."""

    status = "INTERNAL"
    reason = "INTERNAL"


def _classes(root: type[MeshError]) -> Iterator[type[MeshError]]:
    for cls in root.__subclasses__():
        yield cls
        yield from _classes(cls)


_BY_REASON: dict[str, type[MeshError]] = {cls.reason: cls for cls in _classes(MeshError)}
# A base is listed before what derives from it, so the first class of a status is its general one.
_BY_STATUS: dict[str, type[MeshError]] = {}
for _cls in _classes(MeshError):
    _BY_STATUS.setdefault(_cls.status, _cls)


def from_reason(
    status: str,
    reason: str,
    message: str,
    violations: Iterable[tuple[str, str]] = (),
    metadata: Mapping[str, str] | None = None,
    retry_after_ms: int | None = None,
) -> MeshError:
    """The error a service meant: the class of `reason`, else the general class of `status`, else `MeshError`.

    The reason and status as received are kept on the instance, also where no class knows them.
    """
    cls = _BY_REASON.get(reason) or _BY_STATUS.get(status, MeshError)
    error = cls(
        message,
        violations=violations,
        metadata=metadata,
        retry_after_ms=retry_after_ms,
        reason=reason or cls.reason,
    )
    error.status = status or cls.status
    return error
