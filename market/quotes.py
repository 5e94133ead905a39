"""QuoteTask: what a task costs by what connected workers ask, and how long it takes by how fast they were. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format, struct_pb2

from computemesh import workloads
from computemesh.trust.amount import format_cpc
from computemesh.v1 import market_pb2 as pb

TERA = 10**12


def quote(task_type: workloads.Workload[Any], params: Any, asks: Sequence[pb.TypeAsk]) -> pb.QuoteTaskResponse:
    """The quote for a task of these parameters."""
    estimate, jobs = task_type.price(params), task_type.jobs(params)
    layout = task_type.layout(task_type.split(params, bytes(32))[0])
    units = layout.segments * layout.units
    filled = struct_pb2.Struct()
    json_format.ParseDict(params.model_dump(mode="json", exclude_none=True), filled)
    mine = sorted((one for one in asks if one.challenge_type == task_type.name), key=lambda one: one.median_units)
    workers = sum(one.workers for one in mine)
    middle = mine[len(mine) // 2].median_units if mine else 0
    lowest = min((one.lowest_units for one in mine), default=0)
    asked = max(_cost(estimate.flops, middle, jobs), jobs)
    per_s = sum(one.operations_per_s * one.workers for one in mine)
    return pb.QuoteTaskResponse(
        price=format_cpc(asked if middle else estimate.upper_bound_units), operations=str(estimate.flops), jobs=jobs,
        checked_units_per_job=min(task_type.sample_size, units), units_per_job=units, payload=filled, workers=workers,
        lowest_price=format_cpc(max(_cost(estimate.flops, lowest, jobs), jobs)) if workers else "",
        estimated_ms=1000 * estimate.flops // per_s if per_s else 0)  # fmt: skip


def _cost(operations: int, units: int, jobs: int) -> int:
    """Least reward, base units, of which every job's part meets an ask of `units` per 10^12 operations."""
    return -(-operations // jobs * units // TERA) * jobs
