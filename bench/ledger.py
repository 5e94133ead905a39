"""Settled results per second through gRPC, durable: worker-signed batches, each settlement signed by its orchestrator.

    python bench/ledger.py [--results 1000000] [--batch 128] [--batches 4] [--in-flight 4] [--sealed]

A ledger process of its own, real SQLite with synchronous=FULL. With it also: settlements of a single result, one in
flight, and from their acceptance to their inclusion proof; inclusion proofs per second of the ledger's processor time;
its memory as results grow, at every power of ten; the replay of all of them when it starts again. Rates are those of
the first 131,072 results. Beside it, in the same run: the same transactions applied by the fold alone (`fold`), the
requests' bytes written to a file with one fsync each (`disk`), and the same requests answered by a server that does
nothing (`transport`). Everything is signed before the clock starts. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # this file is called like the package it measures

import grpc  # noqa: E402
import psutil  # noqa: E402

from computemesh.service.server import dial  # noqa: E402
from computemesh.trust import envelope, identity, merkle, statement  # noqa: E402
from computemesh.trust.identity import PrivateKey  # noqa: E402
from computemesh.trust.results import result_leaves  # noqa: E402
from computemesh.v1 import ledger_pb2 as pb  # noqa: E402
from computemesh.v1.ledger_pb2_grpc import LedgerServiceStub  # noqa: E402

CHAIN = "bench"
AUTHORITY, MARKET, ORCHESTRATOR, CUSTOMER, TREASURY = (PrivateKey.from_bytes(bytes([at]) * 32) for at in range(1, 6))
NONCES = itertools.count(1)
WORKERS = [PrivateKey.from_bytes(bytes([at]) * 32) for at in range(6, 10)]
LIMITS = {
    "results_per_s": 50_000, "provable_p99_ms": 250, "single_p50_ms": 5, "proofs_per_core_s": 10_000,
    "replay_results_per_s": 200_000,
}  # fmt: skip
RATED = 131_072
"""Results whose rates are measured."""
TASK = 4096
"""Jobs of each task beyond them."""
METHOD = "/computemesh.v1.LedgerService/SubmitTransactions"


def signed(kind: str, body: bytes, key: PrivateKey) -> dict[str, bytes]:
    """id, public_key and signature."""
    tx_id = os.urandom(16)
    digest = statement.transaction_digest(kind, CHAIN, tx_id, body)
    return {"id": tx_id, "public_key": key.public, "signature": key.sign(digest)}


def funding(jobs: int) -> tuple[bytes, list[pb.Transaction]]:
    """(task id, the transactions that fund and assign it)."""
    reward = jobs * 1000 + 7
    order = statement.Order(
        os.urandom(16), CUSTOMER.public, MARKET.public, bytes(32), bytes(32), reward, (int(time.time()) + 86400) * 1000)
    task, packed = order.task_id(CHAIN), order.pack()
    body = statement.deposit_body(identity.address_bytes(CUSTOMER.public), reward)
    assignment = statement.Assignment(task, ORCHESTRATOR.public, 1, jobs).pack()
    return task, [
        pb.Transaction(
            **signed("deposit", body, AUTHORITY), deposit=pb.Deposit(to=CUSTOMER.address, amount_units=reward)),
        pb.Transaction(
            id=order.request_id, public_key=CUSTOMER.public, signature=envelope.sign(CUSTOMER, "order", CHAIN, packed),
            open=pb.EscrowOpen(order=packed)),
        pb.Transaction(**signed("assign", assignment, MARKET), assign=pb.EscrowAssign(assignment=assignment)),
    ]


def batch(task: bytes, first: int, size: int, worker: PrivateKey) -> tuple[pb.ResultBatch, bytes]:
    """A signed batch of `size` results from job `first` on, and the leaf hashes of its results, joined."""
    packed = b"".join([
        statement.COMMITMENT.pack(1, task, job, 1, 1, worker.public, job.to_bytes(32, "big"), next(NONCES))
        for job in range(first, first + size)
    ])  # fmt: skip
    root, proofs = statement.commitment_root(packed), bytes(32 * size)
    leaves = result_leaves(ORCHESTRATOR.public, root, packed, range(size), proofs)
    return pb.ResultBatch(
        worker_key=worker.public, worker_signature=statement.sign_commitments(worker, CHAIN, packed),
        commitments=packed, proof_hashes=proofs), leaves


def settlements(task: bytes, results: int, size: int, batches: int) -> list[pb.Transaction]:
    """Settlements of `batches` batches of `size` results each."""
    made = []
    for start in range(0, results, size * batches):
        firsts = range(start, min(start + size * batches, results), size)
        parts = [batch(task, at, min(size, results - at), WORKERS[at // size % len(WORKERS)]) for at in firsts]
        leaves = b"".join(some for _, some in parts)
        body = statement.settle_body(len(leaves) // 32, merkle.root(leaves))
        made.append(pb.Transaction(
            **signed("settle", body, ORCHESTRATOR), settle=pb.Settle(batches=[part for part, _ in parts])))  # fmt: skip
    return made


async def timed(call: grpc.aio.UnaryUnaryMultiCallable, requests: list[object], in_flight: int) -> tuple[float, list]:
    """(seconds, latencies in ms) of all `requests`, at most `in_flight` at a time."""
    following, latencies, replies = iter(requests), [], []

    async def lane() -> None:
        for request in following:
            sent = time.perf_counter()
            replies.append(await call(request))
            latencies.append((time.perf_counter() - sent) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(in_flight)))
    for reply in replies:
        for outcome in getattr(reply, "outcomes", ()):
            assert outcome.kind == pb.OUTCOME_KIND_APPLIED, outcome
            assert not outcome.refusals, outcome
    return time.perf_counter() - began, sorted(latencies)


async def transport(requests: list[bytes], in_flight: int) -> float:
    """Seconds the same bytes take to a server in another process that answers at once."""
    code = (
        "import asyncio, grpc\n"
        "async def main():\n"
        " s = grpc.aio.server(options=[('grpc.max_receive_message_length', 2**22)])\n"
        " async def answer(request, context): return b''\n"
        f" s.add_generic_rpc_handlers((grpc.method_handlers_generic_handler({METHOD.split('/')[1]!r},"
        " {'SubmitTransactions': grpc.unary_unary_rpc_method_handler(answer)}),))\n"
        " print(s.add_insecure_port('127.0.0.1:0'), flush=True); await s.start(); await s.wait_for_termination()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        try:
            assert process.stdout is not None
            port = int(await asyncio.to_thread(process.stdout.readline))
            async with dial(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary(METHOD)
                await call(requests[0], wait_for_ready=True)
                return (await timed(call, list(requests), in_flight))[0]
        finally:
            process.terminate()


def disk(requests: list[bytes], folder: Path) -> float:
    """Seconds to append the requests' bytes to a file, each followed by fsync."""
    began = time.perf_counter()
    with (folder / "raw").open("wb", buffering=0) as file:
        for request in requests:
            file.write(request)
            os.fsync(file.fileno())
    return time.perf_counter() - began


def fold(transactions: list[pb.Transaction]) -> float:
    """Seconds to examine and apply the settlements in this process, no gRPC and no disk."""
    from computemesh.trust.amount import Shares
    from ledger import wire
    from ledger.block import Chain
    from ledger.evidence import examine
    from ledger.state import State

    state = State(CHAIN, AUTHORITY.public, identity.address_bytes(TREASURY.public), Shares())
    chain = Chain(state)
    chain.advance(time.time_ns() // 1_000_000)
    began = time.perf_counter()
    for message in transactions:
        if message.WhichOneof("body") == "settle" and state.next_tx == 4:
            began = time.perf_counter()
        assert chain.apply(examine(CHAIN, wire.transaction(message))).number
        if chain.results >= 4096:
            chain.collect()
            chain.seal()
    return time.perf_counter() - began


class Served:
    """A ledger in a process of its own, over the folder it was given."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "ledger.toml"
        (folder / "log.key").write_text("07" * 32)
        self.config.write_text(
            f'listen = "127.0.0.1:0"\ndata_dir = "{folder}/data"\nchain_id = "{CHAIN}"\n'
            f'authority_key = "{AUTHORITY.public.hex()}"\ntreasury_address = "{TREASURY.address}"\n'
            f'log_key_file = "{folder}/log.key"\n')
        self.replay_s = 0.0

    async def __aenter__(self) -> Served:
        command = [sys.executable, "-m", "ledger", "--config", str(self.config)]
        self._process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)  # noqa: ASYNC220
        assert self._process.stderr is not None
        while "port" not in (row := json.loads(await asyncio.to_thread(self._process.stderr.readline))):
            if row["event"] == "replayed":
                self.replay_s = row["seconds"]
        self._drained = asyncio.create_task(asyncio.to_thread(self._process.stderr.read))
        self.usage = psutil.Process(self._process.pid)
        self._channel = dial(f"127.0.0.1:{row['port']}")
        self.stub = LedgerServiceStub(self._channel)
        await self.stub.GetLedger(pb.GetLedgerRequest(), wait_for_ready=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)
        self._process.terminate()
        await self._drained
        self._process.wait()

    def cpu_s(self) -> float:
        """Processor time so far."""
        return float(sum(self.usage.cpu_times()[:2]))

    def rss_mib(self) -> float:
        """Resident memory."""
        return round(self.usage.memory_info().rss / 2**20, 1)

    async def open(self, jobs: int) -> bytes:
        """A funded and assigned task of `jobs` jobs; its id."""
        task, first = funding(jobs)
        reply = await self.stub.SubmitTransactions(pb.SubmitTransactionsRequest(transactions=first))
        assert all(one.kind == pb.OUTCOME_KIND_APPLIED for one in reply.outcomes), reply
        return task


def percentile(found: list[float], share: float) -> float:
    """The value below which `share` of the values lies."""
    return round(sorted(found)[min(int(len(found) * share), len(found) - 1)], 2)


async def singles(ledger: Served, count: int) -> dict[str, float]:
    """Settlements of one result, one in flight: ms until accepted, and from there until its proof is in hand."""
    task = await ledger.open(count)
    accepted, provable = [], []
    for at, transaction in enumerate(settlements(task, count, 1, 1)):
        began = time.perf_counter()
        await timed(ledger.stub.SubmitTransactions, [pb.SubmitTransactionsRequest(transactions=[transaction])], 1)
        done = time.perf_counter()
        await ledger.stub.GetInclusionProof(pb.GetInclusionProofRequest(task_id=task.hex(), job=at))
        accepted.append((done - began) * 1000)
        provable.append((time.perf_counter() - done) * 1000)
    return {
        "single_p50_ms": percentile(accepted, 0.5), "single_p99_ms": percentile(accepted, 0.99),
        "provable_p50_ms": percentile(provable, 0.5), "provable_p99_ms": percentile(provable, 0.99),
    }  # fmt: skip


async def proofs(ledger: Served, task: bytes, jobs: int, count: int) -> dict[str, float]:
    """Inclusion proofs per second of the ledger's processor time: in pages, as a receipt asks, and one a call."""
    asked = [pb.GetInclusionProofRequest(task_id=task.hex(), job=at * 7919 % jobs) for at in range(count)]
    cpu = ledger.cpu_s()
    await timed(ledger.stub.GetInclusionProof, list(asked), 32)
    single, cpu, served, token = ledger.cpu_s() - cpu, ledger.cpu_s(), 0, ""
    while served < count:
        page = await ledger.stub.ListResults(
            pb.ListResultsRequest(task_id=task.hex(), page_size=1000, page_token=token, with_proofs=True))
        served, token = served + len(page.proven), page.next_page_token
    return {
        "proofs_per_core_s": round(served / (ledger.cpu_s() - cpu)),
        "proofs_per_core_s_one_a_call": round(count / single),
    }  # fmt: skip


async def memory(ledger: Served, options: argparse.Namespace, settled: int) -> dict[int, float]:
    """Resident MiB of the ledger at every power of ten from `settled` to `--results` results, and there."""
    found = {settled: ledger.rss_mib()}
    goals = sorted({*(10**power for power in range(4, 9) if settled < 10**power < options.results), options.results})
    for goal in goals:
        while settled < goal:
            more = min(TASK, goal - settled)
            made = settlements(await ledger.open(more), more, options.batch, options.batches)
            requests = [pb.SubmitTransactionsRequest(transactions=[one]) for one in made]
            await timed(ledger.stub.SubmitTransactions, list(requests), options.in_flight)
            settled += more
        found[settled] = ledger.rss_mib()
    return found


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The figures of one run."""
    served, rated = Served(folder), min(options.results, RATED)
    async with served as ledger:
        task, first = funding(rated)
        made = settlements(task, rated, options.batch, options.batches)
        wait = pb.WAIT_SEALED if options.sealed else pb.WAIT_ACCEPTED
        requests = [pb.SubmitTransactionsRequest(transactions=[one], wait=wait) for one in made]
        reply = await ledger.stub.SubmitTransactions(pb.SubmitTransactionsRequest(transactions=first))
        assert all(one.kind == pb.OUTCOME_KIND_APPLIED for one in reply.outcomes), reply
        cpu = ledger.cpu_s()
        seconds, latencies = await timed(ledger.stub.SubmitTransactions, list(requests), options.in_flight)
        cpu_us = 1e6 * (ledger.cpu_s() - cpu) / rated
        supply = await ledger.stub.GetSupply(pb.GetSupplyRequest())
        alone = await singles(ledger, options.singles)
        shown = await proofs(ledger, task, rated, options.proofs)
        grown = await memory(ledger, options, rated + options.singles)
    assert supply.escrowed_units == 0
    async with served:
        replayed = max(grown) / max(served.replay_s, 1e-3)
    raw = [request.SerializeToString() for request in requests]
    bare = await transport(raw, options.in_flight)
    folded, written = fold([*first, *made]), disk(raw, folder)
    rate = rated / seconds
    return {
        "bench": "ledger", "results": options.results, "batch": options.batch, "batches_per_settlement":
        options.batches, "in_flight": options.in_flight, "wait": "sealed" if options.sealed else "accepted",
        "results_per_s": round(rate), "cpu_us_per_result": round(cpu_us, 2),
        "fold_results_per_s": round(rated / folded),
        "transport_results_per_s": round(rated / bare),
        "disk_results_per_s": round(rated / written),
        "ratio_to_fold": round(folded / seconds, 3), "ratio_to_transport": round(bare / seconds, 3),
        "p50_ms": percentile(latencies, 0.5), "p95_ms": percentile(latencies, 0.95),
        "p99_ms": percentile(latencies, 0.99), **alone, **shown, "rss_mib_at_results": grown,
        "replay_results_per_s": round(replayed), "limits": LIMITS, "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def main() -> None:
    """Measures once and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=1_000_000, help="results in all; memory is observed up to them")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--sealed", action="store_true")
    parser.add_argument("--singles", type=int, default=200, help="settlements of one result, one in flight")
    parser.add_argument("--proofs", type=int, default=5000, help="inclusion proofs asked for")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(options, Path(folder)))
    for name, value in figures.items():
        print(f"{name:>26}  {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
