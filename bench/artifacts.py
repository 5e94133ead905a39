"""Upload and download of one artifact through gRPC on loopback, digest included, next to what bounds it.

    python bench/artifacts.py [--mib 512] [--store URL] [--folder DIR] [--rounds 3]

The service is a process of its own; the client is this one. `upload` is a whole put of a file: digest, transfer,
server's check, durable. `download` is a whole get to a file: transfer, digest, durable. Beside it, in the same run:
SHA-256 of the file (`sha256`), the same bytes written with one fsync (`disk`), and gRPC messages of 1 MiB with nothing
behind them (`transport_up`, `transport_down`). MB/s, the best of the rounds; memory is the most either process grew by.
`first` is the first round: the system finds memory for the files there, which later rounds get back from the one
before, whose files are removed. `*_cpu` is MB per second of processor time, server and client, the best of the rounds:
what it would be with a core each and nobody else on them. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # this file is called like a module it measures

import grpc  # noqa: E402
import psutil  # noqa: E402

from computemesh.service import artifacts  # noqa: E402
from computemesh.service.access import Caller, Role  # noqa: E402
from computemesh.service.blobs import Owner  # noqa: E402
from computemesh.service.objects import Objects  # noqa: E402
from computemesh.service.server import build_server, dial  # noqa: E402
from computemesh.service.transfer import Transfer, file_digest  # noqa: E402
from computemesh.v1 import artifact_pb2 as pb  # noqa: E402

CHUNK = 1 << 20
GOAL = 300  # MB/s, up and down
BARE = "/bench.Bare"


class _Bare(grpc.GenericRpcHandler):  # type: ignore[misc]
    """What the transport alone does with the same messages; and an empty store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def _clear(self, request: bytes, context: Any) -> bytes:
        for folder in ("refs", "blobs", "data"):
            await self._objects.delete([one.path for one in await self._objects.list(folder)])
        return b""

    def service(self, details: Any) -> Any:
        if details.method == f"{BARE}/Up":
            return grpc.stream_unary_rpc_method_handler(self._up, pb.UploadArtifactRequest.FromString, None)
        if details.method == f"{BARE}/Clear":
            return grpc.unary_unary_rpc_method_handler(self._clear)
        if details.method == f"{BARE}/Down":
            return grpc.unary_stream_rpc_method_handler(
                self._down, None, pb.DownloadArtifactResponse.SerializeToString)
        return None

    async def _up(self, requests: AsyncIterator[pb.UploadArtifactRequest], context: Any) -> bytes:
        return str(sum([len(request.chunk) async for request in requests])).encode()

    async def _down(self, request: bytes, context: Any) -> None:
        chunk = bytes(CHUNK)
        for _ in range(int(request)):
            await context.write(pb.DownloadArtifactResponse(size=1, chunk=chunk))


async def serve(url: str) -> None:
    """The service, until its standard input ends."""
    store = artifacts.Artifacts(url)

    def register(server: grpc.aio.Server) -> None:
        artifacts.mount(server, store, lambda context: Owner("account", "bench"))
        server.add_generic_rpc_handlers((_Bare(store.store.objects),))

    server, port = build_server("127.0.0.1:0", register, [artifacts.SERVICE],
                                identify=lambda context: Caller("bench", frozenset(Role)))  # fmt: skip
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def nobody() -> tuple[tuple[str, str], ...]:
    return ()


async def bare_up(channel: grpc.aio.Channel, mib: int) -> None:
    call = channel.stream_unary(f"{BARE}/Up", pb.UploadArtifactRequest.SerializeToString, None)()
    chunk = bytes(CHUNK)
    for _ in range(mib):
        await call.write(pb.UploadArtifactRequest(chunk=chunk))
    await call.done_writing()
    assert int(await call) == mib * CHUNK


async def bare_down(channel: grpc.aio.Channel, mib: int) -> None:
    call = channel.unary_stream(f"{BARE}/Down", None, pb.DownloadArtifactResponse.FromString)(str(mib).encode())
    received = 0
    while (answer := await call.read()) is not grpc.aio.EOF:
        received += len(answer.chunk)
    assert received == mib * CHUNK


def write_bytes(path: Path, source: Path) -> None:
    with source.open("rb") as data, path.open("wb") as file:
        while block := data.read(8 << 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def memory(process: psutil.Process, most: list[int]) -> None:
    while True:
        most[0] = max(most[0], process.memory_info().rss)
        await asyncio.sleep(0.05)


async def measure(port: int, server: int, folder: Path, mib: int, rounds: int) -> dict[str, Any]:
    channel = dial(f"127.0.0.1:{port}")
    transfer = Transfer(channel, nobody)
    await transfer.put(b"warm")
    processes = [psutil.Process(server), psutil.Process()]
    before = [process.memory_info().rss for process in processes]
    most = [[rss] for rss in before]
    watch = [asyncio.create_task(memory(*pair)) for pair in zip(processes, most, strict=True)]
    best: dict[str, float] = {}
    first: dict[str, float] = {}
    cpu: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        rate = round(mib * CHUNK / 1e6 / seconds, 1)
        best[name] = max(best.get(name, 0.0), rate)
        first.setdefault(name, rate)

    async def spent(name: str, work: Callable[[], Awaitable[Any]]) -> None:
        began = [sum(process.cpu_times()[:2]) for process in processes]
        note(name, await timed(work))
        rates = [mib * CHUNK / 1e6 / (sum(process.cpu_times()[:2]) - start)
                 for process, start in zip(processes, began, strict=True)]  # fmt: skip
        cpu[f"{name}_cpu"] = [round(max(pair), 1) for pair in zip(rates, cpu.get(f"{name}_cpu", [0, 0]), strict=True)]

    source, copy, plain = folder / "source", folder / "copy", folder / "plain"
    for _ in range(rounds):
        await channel.unary_unary(f"{BARE}/Clear")(b"")
        copy.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)
        with source.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(CHUNK))
        digest, _ = await asyncio.to_thread(file_digest, source)
        await spent("upload", lambda: transfer.put(source))
        await spent("download", lambda: transfer.get(digest, copy))  # noqa: B023
        note("sha256", await timed(lambda: asyncio.to_thread(file_digest, source)))
        note("disk", await timed(lambda: asyncio.to_thread(write_bytes, plain, source)))
    grown = [round((top[0] - base) / 2**20) for top, base in zip(most, before, strict=True)]
    for _ in range(rounds):
        note("transport_up", await timed(lambda: bare_up(channel, mib)))
        note("transport_down", await timed(lambda: bare_down(channel, mib)))
    for task in watch:
        task.cancel()
    await channel.close(None)
    return {**best, "first": {name: first[name] for name in ("upload", "download", "disk")}, **cpu, "unit": "MB/s",
            "mib": mib, "rounds": rounds, "server_grew_mib": grown[0], "client_grew_mib": grown[1],
            "load": os.getloadavg()[0], "cores": os.cpu_count()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", help="URL of the store; a temporary folder if absent")
    parser.add_argument("--folder", type=Path, help="where files are written; a temporary folder if absent")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder)).absolute()
    url = arguments.store or (folder / "store").as_uri()
    server = subprocess.Popen([sys.executable, __file__, "--serve", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        result = asyncio.run(measure(port, server.pid, folder, arguments.mib, arguments.rounds))
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)
    for name, value in result.items():
        print(f"{name:16} {value}")
    print(json.dumps({"bench": "artifacts", "limit": GOAL, **result}))


if __name__ == "__main__":
    main()
