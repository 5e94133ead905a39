"""One process of a local cluster: `python -m computemesh.cli.child MODULE ARGS...` runs MODULE as a program.

Its standard input is a pipe whose other end only the cluster holds. When the cluster is gone, however it ended, the
pipe closes, and this process ends itself: in order first, by force after `GRACE_S`. A parent-death signal would be
tied to the thread that started us and exists on Linux only; a pipe has neither limit.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading
import time

GRACE_S = 10.0


def _end_with_the_cluster() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgid(0), signal.SIGKILL)  # the cluster gave each child a process group of its own


def main() -> None:
    """Run the module named first on the command line, with the rest as its arguments."""
    module, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with_the_cluster, name="cluster-pipe", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
