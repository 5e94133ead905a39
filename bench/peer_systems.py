"""One job queue, driven over standard input: `python bench/peer_systems.py NAME` (bench/peers.py starts it).

Requests and answers are JSON lines. First it says {"durable": ...}: what is on disk when the asker has the result. Then
{"jobs": N} is answered by {"jobs_per_s": ...} and {"latency": N} by {"p50_ms": ...}; the end of input ends it and its
servers. Runs in `build/peers`, without the mesh's packages. Every result is compared with the right one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import pwd
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

JOB_BYTES, WORKERS, BATCH = 200, 2, 100
SPAWN = multiprocessing.get_context("spawn")


def work(job: bytes) -> bytes:
    """What a no-op job of the mesh does: 32 bytes of 200."""
    from blake3 import blake3

    return blake3(sha256(job).digest()).digest()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reachable(port: int, within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class System:
    """A queue that runs. `run` gives the results of jobs, in their order, once the asker has all of them."""

    durable = "nothing: memory only"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closing = contextlib.ExitStack()

    def serve(self, command: Sequence[str], port: int, user: str = "") -> None:
        """Start a server and wait for its port; it is ended at the end."""
        if user and os.getuid() == 0:
            command = ["setpriv", f"--reuid={user}", "--regid=postgres", "--clear-groups", *command]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.closing.callback(process.wait)
        self.closing.callback(process.terminate)
        reachable(port)

    def spawn(self, target: Any, *arguments: Any) -> None:
        """Start the two workers."""
        for _ in range(WORKERS):
            process = SPAWN.Process(target=target, args=arguments, daemon=True)
            process.start()
            self.closing.callback(process.join)
            self.closing.callback(process.terminate)

    def run(self, jobs: list[bytes]) -> list[bytes]:
        raise NotImplementedError


class RayActors(System):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import ray

        self.ray = ray
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.closing.callback(ray.shutdown)

        @ray.remote
        class Worker:
            def do(self, job: bytes) -> bytes:
                return work(job)

        self.workers = [Worker.options(num_cpus=1).remote() for _ in range(WORKERS)]

    def run(self, jobs: list[bytes]) -> list[bytes]:
        return list(self.ray.get([self.workers[at % WORKERS].do.remote(job) for at, job in enumerate(jobs)]))


class RayTasks(System):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import ray

        self.ray = ray
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.closing.callback(ray.shutdown)
        self.task = ray.remote(work)

    def run(self, jobs: list[bytes]) -> list[bytes]:
        return list(self.ray.get([self.task.remote(job) for job in jobs]))


class Dask(System):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None,
                               local_directory=str(folder))  # fmt: skip
        self.closing.callback(cluster.close)
        self.client = Client(cluster)
        self.closing.callback(self.client.close)

    def run(self, jobs: list[bytes]) -> list[bytes]:
        return list(self.client.gather(self.client.map(work, jobs, pure=False)))


def celery_app(url: str) -> Any:
    """The application, the same in asker and workers."""
    from celery import Celery

    app = Celery("peer", broker=url, backend=url)
    app.conf.update(worker_prefetch_multiplier=64, task_acks_late=False, worker_hijack_root_logger=False)

    @app.task(name="work")
    def do(job: str) -> str:
        return work(bytes.fromhex(job)).hex()

    return app


class Celery(System):
    durable = "Redis append-only file, fsync every second"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        port = free_port()
        self.serve(["redis-server", "--port", str(port), "--dir", str(folder), "--appendonly", "yes"], port)
        url = f"redis://127.0.0.1:{port}/0"
        self.app = celery_app(url)
        with (folder / "log").open("ab") as log:
            worker = subprocess.Popen([sys.executable, __file__, "--celery", url], stdout=log, stderr=log)
        self.closing.callback(worker.wait)
        self.closing.callback(worker.terminate)

    def run(self, jobs: list[bytes]) -> list[bytes]:
        task = self.app.tasks["work"]
        asked = [task.delay(job.hex()) for job in jobs]
        return [bytes.fromhex(one.get(timeout=300, interval=0.001)) for one in asked]


NATS_JOBS, NATS_RESULTS = "jobs", "results"


def nats_worker(url: str) -> None:
    """Pull up to 100 jobs, publish their results, acknowledge."""

    async def main() -> None:
        import nats

        stream = (await nats.connect(url)).jetstream(publish_async_max_pending=4000)
        jobs = await stream.pull_subscribe(NATS_JOBS, "workers")
        while True:
            try:
                taken = await jobs.fetch(BATCH, timeout=1)
            except TimeoutError:
                continue
            done = [await stream.publish_async(NATS_RESULTS, job.data[:8] + work(job.data[8:])) for job in taken]
            await asyncio.gather(*done)
            for job in taken:
                await job.ack()

    asyncio.run(main())


class Nats(System):
    durable = "JetStream file store, acknowledged before fsync"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        port = free_port()
        self.serve(["nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder)], port)
        self.loop = asyncio.new_event_loop()
        url = f"nats://127.0.0.1:{port}"
        self.loop.run_until_complete(self._connect(url))
        self.closing.callback(lambda: self.loop.run_until_complete(self.connection.close()))
        self.spawn(nats_worker, url)

    async def _connect(self, url: str) -> None:
        import nats

        self.connection = await nats.connect(url)
        self.stream = self.connection.jetstream(publish_async_max_pending=4000)
        await self.stream.add_stream(name=NATS_JOBS, subjects=[NATS_JOBS], retention="workqueue")
        await self.stream.add_stream(name=NATS_RESULTS, subjects=[NATS_RESULTS], retention="workqueue")
        self.results = await self.stream.pull_subscribe(NATS_RESULTS, "asker")

    def run(self, jobs: list[bytes]) -> list[bytes]:
        return self.loop.run_until_complete(self._run(jobs))

    async def _run(self, jobs: list[bytes]) -> list[bytes]:
        found: dict[int, bytes] = {}
        collecting = asyncio.create_task(self._collect(found, len(jobs)))
        waiting = [
            await self.stream.publish_async(NATS_JOBS, at.to_bytes(8, "big") + job) for at, job in enumerate(jobs)
        ]
        await asyncio.gather(*waiting)
        await collecting
        return [found[at] for at in range(len(jobs))]

    async def _collect(self, found: dict[int, bytes], count: int) -> None:
        while len(found) < count:
            try:
                for message in await self.results.fetch(min(BATCH, count - len(found)), timeout=1):
                    found[int.from_bytes(message.data[:8], "big")] = message.data[8:]
                    await message.ack()
            except TimeoutError:
                continue


TAKE = """SELECT id, job FROM jobs WHERE result IS NULL ORDER BY id FOR UPDATE SKIP LOCKED LIMIT %s"""
GIVE = """UPDATE jobs SET result = done.result FROM unnest(%s::bigint[], %s::bytea[]) AS done (id, result)
          WHERE jobs.id = done.id"""


def postgres_worker(url: str) -> None:
    """Take up to 100 jobs, store their results, tell the asker, all in one transaction."""
    import psycopg

    with psycopg.connect(url) as queue, psycopg.connect(url, autocommit=True) as news:
        news.execute("LISTEN jobs")
        while True:
            with queue.transaction():
                rows = queue.execute(TAKE, (BATCH,), binary=True).fetchall()
                if rows:
                    queue.execute(GIVE, ([row[0] for row in rows], [work(row[1]) for row in rows]))
                    queue.execute("NOTIFY results")
            if not rows:
                for _ in news.notifies(timeout=1, stop_after=1):
                    pass


class Postgres(System):
    durable = "PostgreSQL, synchronous_commit on: fsync"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import psycopg

        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        data, port = folder / "data", free_port()
        if os.getuid() == 0:
            shutil.chown(folder, user)
        start = ["setpriv", f"--reuid={user}", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        subprocess.run([*start, str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "asker"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        self.serve([str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", "", "-h", "127.0.0.1"], port,
                   user)  # fmt: skip
        url = f"postgresql://asker@127.0.0.1:{port}/postgres"
        until = time.monotonic() + 30
        while True:  # it listens before it serves
            try:
                self.connection = psycopg.connect(url, autocommit=True)
                break
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        self.connection.execute("CREATE TABLE jobs (id bigserial PRIMARY KEY, job bytea NOT NULL, result bytea)")
        self.connection.execute("CREATE INDEX open ON jobs (id) WHERE result IS NULL")
        self.connection.execute("LISTEN results")
        self.spawn(postgres_worker, url)

    def run(self, jobs: list[bytes]) -> list[bytes]:
        connection = self.connection
        before = connection.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0]
        for at in range(0, len(jobs), BATCH * 10):
            with connection.transaction(), connection.cursor() as cursor:
                with cursor.copy("COPY jobs (job) FROM STDIN") as copy:
                    for job in jobs[at : at + BATCH * 10]:
                        copy.write_row((job,))
                cursor.execute("NOTIFY jobs")
        found: list[tuple[int, bytes]] = []
        seen = before
        while len(found) < len(jobs):
            rows = connection.execute(
                "SELECT id, result FROM jobs WHERE id > %s ORDER BY id LIMIT 10000", (seen,), binary=True).fetchall()
            for row in rows:
                if row[1] is None:
                    break
                found.append(row)
                seen = row[0]
            if len(found) < len(jobs):
                for _ in connection.notifies(timeout=0.2, stop_after=1):
                    pass
        return [result for _, result in found]


SYSTEMS: dict[str, type[System]] = {
    "ray actors": RayActors, "ray tasks": RayTasks, "dask": Dask, "celery": Celery, "nats": Nats, "postgres": Postgres,
}  # fmt: skip


def timed(system: System, jobs: list[bytes]) -> float:
    """Seconds for all of them; their results are checked after the clock has stopped."""
    began = time.perf_counter()
    found = system.run(jobs)
    elapsed = time.perf_counter() - began
    if [bytes(one) for one in found] != [work(job) for job in jobs]:
        raise SystemExit("wrong results")
    return elapsed


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what these libraries print is no answer
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        system = SYSTEMS[name](Path(folder))
        with system.closing:
            print(json.dumps({"durable": system.durable}), file=answers)
            for line in sys.stdin:
                request = json.loads(line)
                if "jobs" in request:
                    jobs = [os.urandom(JOB_BYTES) for _ in range(request["jobs"])]
                    answer = {"jobs_per_s": len(jobs) / timed(system, jobs)}
                else:
                    waits = [timed(system, [os.urandom(JOB_BYTES)]) for _ in range(request["latency"])]
                    answer = {"p50_ms": 1000 * statistics.median(waits)}
                print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder's modules are called like those they measure
    if sys.argv[1] == "--celery":
        celery_app(sys.argv[2]).worker_main(
            ["worker", f"--concurrency={WORKERS}", "--loglevel=ERROR", "--without-gossip", "--without-mingle"])
    else:
        main(sys.argv[1])
