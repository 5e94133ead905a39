"""computemesh: buy and sell computation without trusting the seller.

    from computemesh import Client

    with Client() as client:
        result = client.run("synthetic", {"matrix_size": 1024}, reward="10.0")
        print(result.status, result.verify())

What is named here is public, everything else may change. Names load on first use, so that services which
share this package do not import the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from computemesh.client import AsyncClient, Client
    from computemesh.sandbox.exposed import expose
    from computemesh.trust.errors import (
        AlreadyExists,
        Conflict,
        CostLimit,
        DeadlineExceeded,
        DigestMismatch,
        InsufficientFunds,
        Internal,
        InvalidArgument,
        InvalidProof,
        InvalidState,
        MeshError,
        NotFound,
        ResourceExhausted,
        TaskAlreadyClaimed,
        TaskExpired,
        TaskFailed,
        TaskNotClaimed,
        TaskNotFound,
        Unauthenticated,
        Unauthorized,
        Unavailable,
    )
    from computemesh.trust.receipt import Receipt

__all__ = [
    "AlreadyExists", "AsyncClient", "Client", "Conflict", "CostLimit", "DeadlineExceeded", "DigestMismatch",
    "InsufficientFunds", "Internal", "InvalidArgument", "InvalidProof", "InvalidState", "MeshError", "NotFound",
    "Receipt", "ResourceExhausted", "TaskAlreadyClaimed", "TaskExpired", "TaskFailed", "TaskNotClaimed",
    "TaskNotFound", "Unauthenticated", "Unauthorized", "Unavailable", "expose",
]  # fmt: skip

_HOMES = {
    "Client": "computemesh.client",
    "AsyncClient": "computemesh.client",
    "Receipt": "computemesh.trust.receipt",
    "expose": "computemesh.sandbox.exposed",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'computemesh' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "computemesh.trust.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
