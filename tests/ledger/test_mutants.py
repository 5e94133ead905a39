"""The laws can fail: hand-made defects of the fold, each caught by the tests named beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAWS = ("tests/ledger/test_economy.py", "tests/ledger/test_core.py", "tests/ledger/test_economy_model.py",
        "tests/ledger/test_columns.py", "tests/ledger/test_archive.py")  # fmt: skip

MUTANTS = {
    "a reward is burned at once, before its window closes": (
        "money.py", "(Book.MATURING, burn + sum(units for _, units in payees))))",
        "(Book.MATURING, sum(units for _, units in payees)), (Book.BURNED, burn)))"),
    "the royalty is paid on top of the worker's share": (
        "settling.py", "split.worker - royalty, royalty", "split.worker, royalty"),
    "a delegation never expires": ("money.py", "and state.time_ms < found.expires_ms", "and True"),
    "anybody may withdraw from a pool": (
        "registry.py", '    _require_owner(state, signer, found.owner, "pool")\n    address', "    address"),
    "stake acquired after a contest votes": ("disputes.py", "found.before(dispute.height)", "found.units"),
    "a tie goes to the contestant": ("disputes.py", "2 * against > sum(", "2 * against >= sum("),
    "unbonding stake cannot be slashed": (
        "staking.py", "(found.units + found.leaving) * percent // 100", "found.units * percent // 100"),
    "a slash takes one unit too many": (
        "staking.py", "* percent // 100\n    from_stake", "* percent // 100 + 1\n    from_stake"),
    "an upheld contest leaves the customer unpaid": (
        "disputes.py", "-units), (escrow.customer, units)", "-units), (Book.BURNED, units)"),
    "a refused vote is noted as a change": (
        "disputes.py", '        raise Refused(Reason.VOTING_CLOSED, f"contest: {contest_id.hex()} was decided")',
        "        state.touched.records.add(Dispute.key(contest_id))\n"
        '        raise Refused(Reason.VOTING_CLOSED, "contest: was decided")'),
    "a job is contested twice": (
        "disputes.py", "    state.contested[result.task_id, result.job] = tx_id\n", ""),
    "a closed manual task keeps its unpicked responses": (
        "escrows.py", "        confirm_first(state, escrow, job)\n", "        pass\n"),
    "a settled job is settled again": ("settling.py", "if escrow.has(job) or (", "if ("),
    "one worker gives all the responses": (
        "settling.py", " or any(row.worker == worker_key for row in rows)", ""),
    "unstaking is immediate": ("staking.py", "state.height + state.rules.unbonding_blocks", "state.height"),
    "a settled job is settled again, by columns": (
        "columns.py", "return not (seen[inside >> 3] >> (inside & 7) & 1).any()", "return True"),
    "a job twice in a batch is paid twice, by columns": (
        "columns.py", "(jobs[1:] <= jobs[:-1]).any() and len(np.unique(jobs)) != len(jobs)", "False"),
    "a nonce is used again, by columns": (
        "columns.py", "not window.below & _mask(ages.astype(np.int64) - 1)", "True"),
    "the rest of a division is lost, by columns": (
        "columns.py", "rest * (self.jobs + 1) // escrow.jobs - rest * self.jobs // escrow.jobs", "0 * self.jobs"),
    "an escrow is put away before its row is durable": (
        "archive.py", "ended[0][0] <= self._durable and ", ""),
    "a contest without a quorum costs its bond": ("disputes.py", "    if not judged:\n", "    if False:\n"),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("defect", MUTANTS)
def test_a_defect_of_the_fold_breaks_a_law(defect: str, tmp_path: Path) -> None:
    module, before, after = MUTANTS[defect]
    for folder in ("ledger", "tests/ledger"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/__init__.py", "tests/money.py", "tests/databases.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tests/trust", tmp_path / "tests/trust")
    source = tmp_path / "ledger" / module
    text = source.read_text()
    assert text.count(before) == 1, f"{module}: {before!r} stands {text.count(before)} times"
    source.write_text(text.replace(before, after))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *LAWS, "-x", "-q", "-m", "not long", "-c", str(ROOT / "pyproject.toml"),
         "--rootdir", str(tmp_path)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True,
        check=False)  # fmt: skip
    failing = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", run.stdout, re.MULTILINE)
    assert run.returncode == 1, f"nobody noticed that {defect}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
    assert failing, run.stdout[-2000:]
    print(f"\n{defect}: {failing[0]}")
