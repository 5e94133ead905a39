"""One attacker in a process of its own, or one that only burns as much of the machine.

    python -m tests.attacks.attacker ATTACK HOST:PORT PATH SECONDS ADDRESS [ADDRESS ...]
                                                                       prints `PIECES CPU_SECONDS CONNECTIONS`
    python -m tests.attacks.attacker burn SHARE SECONDS                computes for SHARE of the time
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import time
from collections.abc import Sequence

from tests.attacks.frames import ATTACKS, PIECES, block

SLICE_S = 0.01


def assail(name: str, address: str, path: str, seconds: float, own: Sequence[str]) -> tuple[int, int]:
    """(pieces sent, connections made): dials again where the server hangs up or reads no more, from its `own` addresses
    in turn."""
    attack, headers = ATTACKS[name], block(path)
    host, _, port = address.rpartition(":")
    until, sent, dialled, sources = time.monotonic() + seconds, 0, 0, itertools.cycle(own)
    while time.monotonic() < until:
        left = max(until - time.monotonic(), 0.01)
        with contextlib.suppress(OSError), \
                socket.create_connection((host, int(port)), left, (next(sources), 0)) as connection:
            dialled += 1
            connection.settimeout(0.5)
            connection.sendall(attack.opening())
            for at in range(PIECES):
                if time.monotonic() > until:
                    break
                connection.sendall(attack.piece(headers, at))
                sent += 1
    return sent, dialled


def burn(share: float, seconds: float) -> None:
    """Computes for `share` of each hundredth of a second, by the process' own clock."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began, used = time.monotonic(), time.process_time()
        while time.process_time() - used < share * SLICE_S and time.monotonic() < until:
            pass
        time.sleep(max(0.0, began + SLICE_S - time.monotonic()))


def main() -> None:
    """Prints when it begins, and what it did."""
    print("begins", flush=True)
    if sys.argv[1] == "burn":
        burn(float(sys.argv[2]), float(sys.argv[3]))
        sent = dialled = 0
    else:
        sent, dialled = assail(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5:])
    print(sent, time.process_time(), dialled)


if __name__ == "__main__":
    main()
