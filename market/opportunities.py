"""ListOpportunities: what a worker could earn on now. PURE over the book."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator

from computemesh.trust.amount import format_cpc
from computemesh.v1 import market_pb2 as pb
from market import views
from market.book import Book, Task
from market.states import Phase

DEFAULT_LIMIT = 50
_OPEN = frozenset({Phase.QUEUED, Phase.ASSIGNING, Phase.LEASED})


def find(book: Book, request: pb.ListOpportunitiesRequest) -> pb.ListOpportunitiesResponse:
    """Live tasks with jobs left that match, the best paid job first."""
    found = list(_matching(book, request))
    best = heapq.nlargest(
        request.limit or DEFAULT_LIMIT, found,
        key=lambda task: (task.spec.reward_units / task.spec.jobs, task.spec.priority, -task.sequence))  # fmt: skip
    return pb.ListOpportunitiesResponse(opportunities=[_shown(task) for task in best], total=len(found))


def _matching(book: Book, request: pb.ListOpportunitiesRequest) -> Iterator[Task]:
    types = frozenset(request.challenge_types)
    for task in book.tasks.values():
        spec, state = task.spec, task.state
        if state.phase not in _OPEN or state.jobs_settled >= spec.jobs or (types and spec.challenge_type not in types):
            continue
        labels = json.loads(spec.labels)
        too_large = request.memory_bytes and labels.get("memory_bytes", 0) > request.memory_bytes
        if not too_large and request.pool in ("", labels.get("pool", "")):
            yield task


def _shown(task: Task) -> pb.Opportunity:
    spec, labels = task.spec, json.loads(task.spec.labels)
    return pb.Opportunity(
        task_id=spec.task_id.hex(), challenge_type=spec.challenge_type,
        reward_per_job=format_cpc(spec.reward_units // spec.jobs), jobs_left=spec.jobs - task.state.jobs_settled,
        priority=spec.priority, deadline=spec.deadline_ms // 1000, pool=labels.get("pool", ""),
        model=labels.get("model", ""), delivery=views.delivery(views.terms(spec)),
        memory_bytes=labels.get("memory_bytes", 0))  # fmt: skip
