"""Who may call what: one table for every RPC, held by the outermost interceptor.

Most calls carry `authorization: Bearer ...`. Streams of workers and orchestrators, and transactions, are proved by a
signature in the message itself, which whoever reads the message checks; the table says whose it must be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import grpc

from computemesh.service.auth import read_token, required_bearer
from computemesh.service.limits import Rates, Slots
from computemesh.trust.errors import Unauthenticated, Unauthorized
from computemesh.trust.identity import address_of

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class Role(Enum):
    """As what somebody calls; the value is how messages say it."""

    ANONYMOUS = "anybody"
    CUSTOMER = "a customer"
    WORKER = "a worker's key"
    ORCHESTRATOR = "an orchestrator's key"
    OPERATOR = "the operator's key"


class Proof(Enum):
    """Where a call says who makes it."""

    NONE = "none"
    BEARER = "bearer"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class Row:
    """`writes`: whether a read-only token does not do."""

    roles: frozenset[Role]
    proof: Proof
    writes: bool = False


ANYBODY = Row(frozenset({Role.ANONYMOUS}), Proof.NONE)


def _reads(*roles: Role) -> Row:
    return Row(frozenset(roles), Proof.BEARER)


def _writes(*roles: Role) -> Row:
    return Row(frozenset(roles), Proof.BEARER, writes=True)


def _signed(*roles: Role) -> Row:
    return Row(frozenset(roles), Proof.MESSAGE, writes=True)


_STORES = (Role.CUSTOMER, Role.WORKER, Role.ORCHESTRATOR)
_SERVICES: Mapping[str, Mapping[str, Row]] = {
    "MarketService": {
        "GetMarket": ANYBODY,
        "GetCaller": _reads(Role.CUSTOMER),
        "CreateTask": _writes(Role.CUSTOMER),
        "CreateTasks": _writes(Role.CUSTOMER),
        "SubmitAct": _writes(Role.CUSTOMER),
        "QuoteTask": _reads(Role.CUSTOMER),
        "GetTask": _reads(Role.CUSTOMER),
        "ListTasks": _reads(Role.CUSTOMER),
        "WatchTask": _reads(Role.CUSTOMER),
        "CancelTask": _writes(Role.CUSTOMER),
        "RegisterModel": _writes(Role.CUSTOMER),
        "GetModel": _reads(Role.CUSTOMER),
        "ListModels": _reads(Role.CUSTOMER),
        "ListFunctions": _reads(Role.CUSTOMER),
        "ListPools": _reads(Role.CUSTOMER),
        "ListOpportunities": _reads(Role.CUSTOMER),
        "WatchEvents": _reads(Role.CUSTOMER),
        "AddWebhook": _writes(Role.CUSTOMER),
        "ListWebhooks": _reads(Role.CUSTOMER),
        "RemoveWebhook": _writes(Role.CUSTOMER),
        "Dispatch": _signed(Role.ORCHESTRATOR),
    },
    "OrchestratorService": {
        "Work": _signed(Role.WORKER),
        "ListWorkers": ANYBODY,
        "GetWorker": ANYBODY,
        "DrainWorker": _writes(Role.WORKER, Role.OPERATOR),
        "ResumeWorker": _writes(Role.WORKER, Role.OPERATOR),
        "ListJobs": ANYBODY,
        "GetJob": ANYBODY,
        "GetAuditTranscript": ANYBODY,
    },
    "WorkerService": {
        "Describe": ANYBODY,
        "Drain": _writes(Role.WORKER, Role.OPERATOR),
        "Resume": _writes(Role.WORKER, Role.OPERATOR),
    },
    "ArtifactService": {
        "UploadArtifact": _writes(*_STORES),
        "DownloadArtifact": _reads(*_STORES),
        "StatArtifact": _reads(*_STORES),
        "ListArtifacts": _reads(*_STORES),
        "DeleteArtifact": _writes(*_STORES),
    },
    # A public log: everybody reads it, and what is written carries its author's signature.
    "LedgerService": {
        "SubmitTransactions": _signed(Role.CUSTOMER, Role.WORKER, Role.ORCHESTRATOR, Role.OPERATOR),
        **dict.fromkeys((
            "GetLedger", "GetTransaction", "GetAccount", "ListAccounts", "GetSupply", "GetEscrow", "GetBlock",
            "ListBlocks", "GetComputeRoot", "GetResult", "ListResults", "GetInclusionProof", "GetConsistencyProof",
            "GetCheckpoint", "GetStake", "ListStakes", "GetDispute", "ListDisputes", "GetPool", "GetModelTerms",
            "GetBeacon", "ListEntries", "WatchBlocks"), ANYBODY),
    },
}  # fmt: skip
ACCESS: Mapping[str, Row] = {
    f"/computemesh.v1.{service}/{method}": row for service, rows in _SERVICES.items() for method, row in rows.items()
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, by address, and as what. No roles: a key that this service does not know."""

    address: str
    roles: frozenset[Role]
    read_only: bool = False


Identify = Callable[["Context"], Caller]
"""Who makes a call. Raises Unauthenticated saying how to authenticate."""


def nobody(context: Context) -> Caller:
    """For services that need to know no callers."""
    raise Unauthenticated("this service takes no credentials, and the call needs some", reason="MISSING_CREDENTIALS")


def by_key(chain: str, roles_of: Callable[[bytes], frozenset[Role]], now_ms: Callable[[], int]) -> Identify:
    """Callers are keys that signed their own token; `roles_of` says what a key (33 bytes) is here."""

    def identify(context: Context) -> Caller:
        token = read_token(required_bearer(context), chain, now_ms())
        return Caller(address_of(token.key), roles_of(token.key), token.read_only)

    return identify


def host_of(context: Context) -> str:
    """The caller's network address without its port."""
    return str(context.peer()).rpartition(":")[0]


def is_local(context: Context) -> bool:
    """Whether the caller is on this machine."""
    return host_of(context).startswith(("ipv4:127.", "ipv6:%5B::1%5D", "ipv6:[::1]", "unix"))


class Gate:
    """Admits calls by the table, no more of them than `rates` allow, and `at_once` calls and `streams` at a time."""

    def __init__(
        self, identify: Identify = nobody, rates: Rates | None = None, at_once: int = 0, streams: int = 0
    ) -> None:
        self._identify, self._rates = identify, rates or Rates()
        # Apart: writes wait for disks and other services, and reads need not wait with them.
        self._reading, self._writing = Slots(at_once), Slots(at_once)
        self._streams = Slots(streams, "streams are open")

    def slot(self, method: str, streams: bool) -> AbstractContextManager[None]:
        """Held while a call is answered, or a stream is open. Raises ResourceExhausted saying when to try again."""
        if streams:
            return self._streams.one()
        row = ACCESS.get(method, ANYBODY)
        return (self._writing if row.writes else self._reading).one()

    def admit(self, method: str, context: Context) -> None:
        """Raises Unauthenticated, Unauthorized, or ResourceExhausted saying when to try again."""
        row = ACCESS.get(method)
        if row is None:
            raise Unauthorized(f"nobody may call {method}: it has no row in the table of access", reason="NO_ACCESS")
        if row.proof is not Proof.BEARER:
            self._rates.take(host_of(context))
            return
        try:
            caller = self._identify(context)
        except Unauthenticated:
            self._rates.take(host_of(context))
            raise
        self._rates.take(caller.address)
        name = method.rpartition("/")[2]
        if not caller.roles & row.roles:
            wanted = " or ".join(role.value for role in Role if role in row.roles)
            known = " and ".join(role.value for role in Role if role in caller.roles) or "not known here"
            raise Unauthorized(f"{caller.address} is {known}, {name} is for {wanted}", reason="ROLE_NEEDED",
                               metadata={"caller": caller.address})  # fmt: skip
        if row.writes and caller.read_only:
            raise Unauthorized(f"authorization: this token only reads, and {name} changes something",
                               reason="TOKEN_SCOPE", metadata={"caller": caller.address})  # fmt: skip
