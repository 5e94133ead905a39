"""Several answers to a job, for customers who pick among them (MANUAL delivery with `responses` above one).

The first answer counts as the job's: with one for every job the market hears that the task is answered. After each the
job waits again, for a worker of another owner, until the customer has as many answers as it wanted or has picked one.
"""

from __future__ import annotations

from orchestrator import events as e
from orchestrator.model import Batch, Job, Lease, Task, Trouble
from orchestrator.state import State, count_settled


def one_more(task: Task, index: int) -> bool:
    """Whether the job has an answer already."""
    trouble = task.trouble.get(index)
    return task.responses > 1 and trouble is not None and bool(trouble.answered)


def settled(state: State, lease: Lease, event: e.SettleAnswered, now_ms: int, out: e.Effects) -> None:
    """The ledger has an answer: the job waits for the next one, or is done."""
    task, index = lease.task, lease.index
    if task.states[index] != Job.SETTLING:
        return
    task.settling -= 1
    first = not one_more(task, index)
    trouble = task.trouble.setdefault(index, Trouble())
    trouble.attempts += 1  # the next commitment is another attempt
    trouble.answered.add(lease.owner)
    if len(trouble.answered) < task.responses and not task.ended:
        task.states[index] = Job.QUEUED  # (SETTLING, ANSWERED)
        task.returned.append(index)
        state.queue.add(task, now_ms)
        state.place_needed = True
    else:
        task.states[index] = Job.SETTLED  # (SETTLING, SETTLE)
    if first:
        task.results[32 * index : 32 * index + 32] = lease.result_hash
        count_settled(state, task, 1, event.height, event.tx_id, out)


def refused(state: State, batch: Batch, lease: Lease, reason: str, out: e.Effects) -> None:
    """The ledger wants no further answer to this job: it was picked, or the task is closed."""
    lease.task.settling -= 1
    lease.task.states[lease.index] = Job.SETTLED  # (SETTLING, SETTLE): with the answers it has
    out.send.append(e.SendVerdicts(batch.session, e.REFUSED, [lease.id], reason))
