"""`make attacks`: every attack on every public port, next to a control. Prints the table of docs/reliability.md and one
JSON object last; exit status 1 where an honest client gets less than it should."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from computemesh.cli.cluster import Cluster
from tests.attacks.frames import ATTACKS
from tests.attacks.rig import PORTS, compare, strangers

LEAST = 0.7


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack and each control")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ports", nargs="*", choices=PORTS, default=list(PORTS))
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--addresses", type=int, default=1, help="that the attackers call from in a round")
    arguments = parser.parse_args()
    addresses = strangers(arguments.addresses)
    found = {}
    print("| Port | Attack | Sent | Honest calls/s | In the control | Share | Longest call | Memory grew by |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder, \
            Cluster(Path(folder), workers=1, port_base=0, edge_port=0) as cluster:  # fmt: skip
        for port in arguments.ports:
            for attack in arguments.attacks:
                one = compare(cluster, port, attack, seconds=arguments.seconds, rounds=arguments.rounds,
                              addresses=addresses)
                print(one.row(), flush=True)
                found[f"{port}: {attack}"] = round(one.ratio, 3)
    low = {name: ratio for name, ratio in found.items() if ratio < LEAST}
    print(json.dumps({"ratios": found, "below": low}))
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
