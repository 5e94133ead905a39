"""The error tree and its way over the wire."""

from __future__ import annotations

import copy
import pickle

import pytest

from computemesh.trust import errors
from computemesh.trust.errors import MeshError, from_reason

CLASSES = [cls for cls in errors._classes(MeshError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_comes_back_as_itself(cls: type[MeshError]) -> None:
    sent = cls("no", violations=[("a.b", "is bad")], metadata={"k": "v"}, retry_after_ms=50)
    got = from_reason(
        sent.status, sent.reason, sent.message, sent.violations, sent.metadata, sent.retry_after_ms
    )
    assert type(got) is cls
    assert (got.status, got.reason, str(got)) == (sent.status, sent.reason, "no")
    assert (got.violations, got.metadata, got.retry_after_ms) == ([("a.b", "is bad")], {"k": "v"}, 50)


def test_reasons_are_unique() -> None:
    assert len({cls.reason for cls in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("TaskNotFound", "NOT_FOUND", "TASK_NOT_FOUND"),
        ("Conflict", "ALREADY_EXISTS", "ID_CONFLICT"),
        ("TaskExpired", "FAILED_PRECONDITION", "TASK_EXPIRED"),
        ("InvalidProof", "INVALID_ARGUMENT", "INVALID_PROOF"),
        ("InsufficientFunds", "FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"),
        ("Unauthorized", "PERMISSION_DENIED", "UNAUTHORIZED"),
        ("ResourceExhausted", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
    ],
)
def test_names_on_the_wire_are_stable(name: str, status: str, reason: str) -> None:
    cls = getattr(errors, name)
    assert (cls.status, cls.reason) == (status, reason)


def test_unknown_reason_falls_back_to_the_general_class_of_its_status_and_is_kept() -> None:
    error = from_reason("NOT_FOUND", "WORKER_NOT_FOUND", "gone")
    assert type(error) is errors.NotFound
    assert (error.reason, error.status) == ("WORKER_NOT_FOUND", "NOT_FOUND")
    assert type(from_reason("FAILED_PRECONDITION", "", "x")) is errors.InvalidState
    assert from_reason("FAILED_PRECONDITION", "", "x").reason == "INVALID_STATE"
    assert type(from_reason("ABORTED", "NEVER_HEARD", "x")) is MeshError
    assert from_reason("ABORTED", "NEVER_HEARD", "x").status == "ABORTED"


def test_instances_do_not_share_details() -> None:
    errors.NotFound("a").metadata["k"] = "v"
    assert errors.NotFound("b").metadata == {}
    assert errors.NotFound("a", reason="ELSE").reason == "ELSE"
    assert errors.NotFound.reason == "NOT_FOUND"


def test_errors_cross_process_boundaries() -> None:
    error = errors.InvalidArgument("no", violations=[("a", "b")], reason="CUSTOM")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), again.violations, again.reason) == (type(error), error.violations, "CUSTOM")
