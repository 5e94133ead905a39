"""Children that do not keep to the conversation: `python -m tests.sandbox.rogue FD HOW`."""

import json
import os
import socket
import sys
import time

from computemesh.sandbox.child import Link, Refused, confine, leave_network, limit_memory, mapped_bytes
from computemesh.sandbox.frames import HEAD, Kind


def memory() -> None:
    held = []
    while True:
        held.append(bytearray(b"x" * 2**24))
        time.sleep(0.01)


def main(fd: int, how: str) -> None:
    confine()
    leave_network()
    link = Link(fd)
    link.send(Kind.READY)
    link.request()
    raw = link._socket
    link.phase("misbehaving")
    if how == "memory":
        memory()
    elif how == "address-space":
        limit_memory(mapped_bytes() + 2**26)
        memory()
    elif how == "flood":
        raw.sendall(HEAD.pack(Kind.OUTPUT, 2**40))
    elif how == "drip":
        while True:
            link.send(Kind.OUTPUT, b"x")
    elif how == "junk":
        raw.sendall(b"\xff" * 9)
    elif how == "abort":
        os.abort()
    elif how == "leave":
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)
    elif how == "told":
        link.fail(Refused("resource_exhausted; DROP", "RESOURCE_EXHAUSTED " + "x" * 10_000))
    elif how == "environment":
        link.document({"names": sorted(os.environ), "folder": os.listdir(), "network": _network()})
        link.send(Kind.DONE)
    time.sleep(60)


def _network() -> str:
    try:
        socket.create_connection(("127.0.0.1", int(os.environ.get("XLA_TEST_PORT", "9"))), timeout=1).close()
    except OSError as error:
        return type(error).__name__
    return "connected"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])


def says(data: bytes) -> dict:
    return dict(json.loads(data))
