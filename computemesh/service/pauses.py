"""What stops a long-lived process for a moment, made short."""

from __future__ import annotations

import gc
import sys

SWITCH_S = 0.0002


def shorten_pauses() -> None:
    """To be called once everything is loaded.

    What a process loaded to start with is never garbage, and most of what it makes later has no cycles: collections
    leave the former alone and come less often, or they would stop it for tens of milliseconds now and then (a hundred
    where JAX is loaded). And a thread that comes back from the disk waits 0.2 ms for the event loop's turn to end, not
    Python's 5 ms: a commit needs several such turns.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    sys.setswitchinterval(SWITCH_S)
