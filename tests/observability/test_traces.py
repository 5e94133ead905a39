"""One trace id leads from the client's call to the block."""

from __future__ import annotations

import json
import subprocess
import sys

from computemesh.cli.cluster import Cluster
from tests.observability.collector import Collector, Span

PARTIES = {"client", "market", "orchestrator", "worker", "ledger"}
# A customer's program, in a process of its own: a tracer is set once per process.
CUSTOMER = """
import sys
from computemesh import Client
from computemesh.service import tracing

tracing.configure("client", sys.argv[2])
with Client(sys.argv[1]) as mesh:
    print(mesh.run("noop", {"jobs": 300, "bytes": 64}, reward="1.0", timeout=120).task_id)
    handles = [mesh.submit("noop", {"jobs": 1, "bytes": 64}, reward="1.0") for _ in range(3)]  # may share batches
    assert all(handle.wait(timeout=120).status == "completed" for handle in handles)
    print(*(handle.task_id for handle in handles))
"""


def executed(spans: list[Span]) -> int:
    return sum(span.attributes["jobs"] for span in spans if span.name == "execute")


def publish(cluster: Cluster, collector: Collector) -> list[str]:
    arguments = [sys.executable, "-c", CUSTOMER, str(cluster.data / "profile.toml"), collector.address]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def trace_of(collector: Collector, task_id: str) -> list[Span]:
    """All spans of a task's trace, once its block's has come and every span's parent."""
    def is_task(span: Span) -> bool:
        return span.name == "task" and span.attributes["task"] == task_id

    first = next(s for s in collector.wait("", lambda spans: any(map(is_task, spans))) if is_task(s))

    def whole(spans: list[Span]) -> bool:
        known = {span.span_id for span in spans} | {""}
        shared = [span for span in spans if span.name == "settle"]
        settled = shared and all(span.links for span in shared)  # the ledger's part is in another task's trace
        there = {span.service for span in spans} >= PARTIES - ({"ledger"} if settled else set())
        return there and bool(shared) and all(span.parent_id in known for span in spans)

    return collector.wait(first.trace_id, whole)


def test_one_trace_leads_from_the_clients_call_to_the_block(watched: Cluster, collector: Collector) -> None:
    task_ids = publish(watched, collector)
    traces = [trace_of(collector, task_id) for task_id in task_ids]
    assert len({spans[0].trace_id for spans in traces}) == len(task_ids), "each task has a trace of its own"

    spans = collector.wait(traces[0][0].trace_id, lambda spans: executed(spans) >= 300)
    by_id = {span.span_id: span for span in spans}
    assert {span.service for span in spans} == PARTIES
    roots = [span for span in spans if not span.parent_id]
    assert [(root.service, root.name) for root in roots] == [("client", "submit")]

    def way(span: Span) -> list[str]:
        """From the root to this span, by service and name."""
        above = [] if not span.parent_id else way(by_id[span.parent_id])
        return [*above, f"{span.service} {span.name.rpartition('/')[2]}"]

    ways = {" > ".join(way(span)) for span in spans}
    created = "client submit > client CreateTask > market CreateTask"
    assert f"{created} > market SubmitTransactions > ledger SubmitTransactions" in ways, "the escrow"
    assert f"{created} > orchestrator task > worker execute" in ways
    assert f"{created} > orchestrator task > orchestrator audit" in ways
    settled = f"{created} > orchestrator task > orchestrator settle > orchestrator SubmitTransactions"
    assert f"{settled} > ledger SubmitTransactions > ledger block" in ways, ways

    for span in spans:
        assert span.began_ns <= span.ended_ns, span
        if span.parent_id:
            # Clocks are one machine's; an executor's times are counted back from its end.
            assert by_id[span.parent_id].began_ns <= span.began_ns + 5_000_000, span
    assert all(span.attributes["height"] > 0 for span in spans if span.name == "block")


def test_log_lines_of_a_traced_task_name_its_trace(watched: Cluster, collector: Collector) -> None:
    task_id = publish(watched, collector)[0]
    trace_id = trace_of(collector, task_id)[0].trace_id
    lines = [json.loads(line) for line in watched.log("orchestrator").read_text().splitlines()]
    found = [line["event"] for line in lines if line.get("trace_id") == trace_id]
    assert "task leased" in found
    assert "settled" in found
