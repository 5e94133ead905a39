"""One line per task type: what a check costs, what it finds, whom it accuses. Part of `make bench-verify`.

Each module of `bench/rows/` exports `row(quick)`; each runs in a process of its own, so that no row measures what
another compiled, cached or changed. Types without a row are named below the table.

    python -m bench.verify_types [--quick] [--types rendering,training]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARES = ("0.01", "0.05", "0.10", "0.20")
CHILD = (
    "import importlib, json, os, sys\n"
    "out = os.dup(1); os.dup2(2, 1)\n"  # whatever a row prints is not its result
    "row = importlib.import_module(f'bench.rows.{sys.argv[1]}').row(sys.argv[2] == 'quick')\n"
    "os.write(out, json.dumps(row).encode())\n"
)


def types_with_rows() -> list[str]:
    """The task types that `bench/rows` measures."""
    return sorted(module.name for module in pkgutil.iter_modules([str(ROOT / "bench" / "rows")]))


def measure(name: str, quick: bool, limit_s: float) -> dict[str, Any]:
    """A type's row; {"type", "error"} where it fails or takes longer than `limit_s` seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OPENBLAS_NUM_THREADS", None)  # that is how the synthetic auditor is measured
    command = [sys.executable, "-c", CHILD, name, "quick" if quick else "whole"]
    begin = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    try:
        out, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"type": name, "error": f"took longer than {limit_s:.0f} s"}
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # also what the row started
        child.wait()
    if child.returncode:
        return {"type": name, "error": f"ended with status {child.returncode}; its traceback is above"}
    return {**json.loads(out), "measured_in_s": round(time.monotonic() - begin, 1)}


def header() -> str:
    shares = "  ".join(f"{float(share):4.0%}" for share in SHARES)
    costs = f"{'type':<12} {'compute s':>9} {'check s':>8} {'check %':>8} {'opening B':>10}"
    return f"{costs}   {shares}  {'downgrade':>9}   false rejections"


def line(row: dict[str, Any]) -> str:
    """A row of the table; detections are shares of the trials in which the lie was found."""
    if "error" in row:
        return f"{row['type']:<12} FAILED: {row['error']}"
    found = "  ".join(f"{row['detected'][share]:4.0%}" for share in SHARES)
    return (
        f"{row['type']:<12} {row['compute_s']:9.3f} {row['check_s']:8.4f} {100 * row['check_share']:8.2f}"
        f" {row['bytes']:10,}   {found}  {row['downgrade_detected']:9.0%}"
        f"   {row['false_rejections']} of {row['honest_jobs']:,}"
    )


def good(row: dict[str, Any]) -> bool:
    """Whether a type was measured and accused nobody who was honest."""
    return "error" not in row and row["false_rejections"] == 0


def unmeasured() -> str:
    """The registered types that have no row, in words: noop computes nothing, a function's answer nobody can check."""
    from computemesh.workloads import names

    missing = sorted(set(names()) - {"synthetic", *types_with_rows()})  # bench/verify.py has the synthetic one
    return f"without a row: {', '.join(missing)}" if missing else ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer runs, trials and jobs")
    parser.add_argument("--types", default="", help="only these types, with commas; all if empty")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds one type may take (3600)")


def chosen(parser: argparse.ArgumentParser, text: str, known: Sequence[str]) -> list[str]:
    """The types that `--types` names, in the table's order; ends the program on an unknown one."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"--types: no row for {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def collect(
    names: Iterable[str], quick: bool, limit_s: float, first: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Measure and print the table, line by line, after the rows there are already."""
    print(header(), flush=True)
    rows = list(first)
    for row in rows:
        print(line(row), flush=True)
    for name in names:
        rows.append(measure(name, quick, limit_s))
        print(line(rows[-1]), flush=True)
    if text := unmeasured():
        print(text)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    arguments = parser.parse_args()
    rows = collect(chosen(parser, arguments.types, types_with_rows()), arguments.quick, arguments.limit)
    met = all(map(good, rows))
    print(json.dumps({"bench": "verify_types", "met": met, "types": rows}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
