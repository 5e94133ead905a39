"""All parsers under Atheris (libFuzzer), which looks for inputs that reach code no other did. A process of its own:
libFuzzer ends it when it is done.

    python -m tests.fuzz.guided RUNS SEED [OPTION OF LIBFUZZER ...]
"""

from __future__ import annotations

import collections
import random
import sys

import atheris

with atheris.instrument_imports(include=["computemesh", "market", "ledger"]):
    from tests.fuzz.parsers import parsers

AFRESH = 0.1
"""Share of inputs that begin with a valid one, so that no parser is forgotten."""
LONGEST = 1 << 16
# A parser that takes this long, or this much memory, is a defect.
LIMITS = ("-timeout=20", "-rss_limit_mb=4096")


def main() -> None:
    """Prints one line `NAME INPUTS ACCEPTED` for each parser, then libFuzzer's statistics; exits 77 on a broken law."""
    runs, seed = int(sys.argv[1]), int(sys.argv[2])
    known = parsers()
    fed: collections.Counter[str] = collections.Counter()
    accepted: collections.Counter[str] = collections.Counter()

    def feed(data: bytes) -> None:
        parser = known[data[0] % len(known) if data else 0]
        fed[parser.name] += 1
        accepted[parser.name] += parser.feed(data[1:])
        if fed.total() >= runs:  # libFuzzer ends the process without asking Python
            for name, count in fed.items():
                print(f"{name}\t{count}\t{accepted[name]}", flush=True)

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        at = data[0] % len(known) if data and rng.random() > AFRESH else rng.randrange(len(known))
        parser = known[at]
        start = data[1:] if data and data[0] % len(known) == at else rng.choice(parser.seeds)
        changed = atheris.Mutate(start, most - 1) if rng.random() < 0.5 else parser.spoiled(rng, start)
        return (bytes([at]) + changed)[:most]

    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={LONGEST}", "-print_final_stats=1", "-len_control=0"]
    atheris.Setup([sys.argv[0], *sys.argv[3:], *options, *LIMITS], feed, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
