"""The worker's half of the Work stream as a state machine: events in, effects out.

No I/O, no clock, no randomness, no grpc, no jax. The shell makes `Effects.persist` durable before it sends
anything of the same effects: a nonce that left this machine unreserved could be used again after a crash.

Laws, held by tests: every job held ends in exactly one commitment or nack, or with its stream; credits at the
orchestrator and jobs held never exceed what was asked for; no nonce is used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from computemesh.trust import envelope
from computemesh.trust.identity import PrivateKey, valid_public_key
from computemesh.trust.statement import hello_body, sign_leaves
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.common_pb2 import Goodbye, Greeting, Hello
from worker import answers as outgoing
from worker.answers import Answer, Answers, GroupDone
from worker.events import (
    TRANSITIONS,
    Challenged,
    Counts,
    Dialled,
    Effects,
    Event,
    Fetched,
    Finished,
    LaneDown,
    LaneUp,
    Opened,
    Partial,
    Pause,
    ProtocolViolation,
    Received,
    Resume,
    State,
    Stored,
    Storing,
    StreamEnded,
    Tick,
)
from worker.lanes import Lanes
from worker.pace import Pace

NONCES_AHEAD = 1024
MAX_BATCH = 4096
# 4,096 paths of 22 nodes are 3 MiB: more could not be sent.
MAX_CHALLENGED = 4096
# A tree over 8,192 units takes about 15 ms; the stream must not stand still for longer.
QUICK_UNITS = 8192
LANES_LOST_AFTER_MS = 10_000
MAX_DETAIL = 1024
KILLS_OF_A_POISON_JOB = 2


class Core:
    """One agent's state over all its streams. `reserved` is the first nonce never reserved before."""

    def __init__(
        self,
        key: PrivateKey,
        capabilities: bytes,
        challenge_types: Collection[str],
        batchable: Collection[str],
        lanes: int,
        reserved: int,
        credits: int = 0,
        env_classes: Sequence[str] = (),
    ) -> None:
        self._key = key
        self._capabilities = capabilities
        self._types = frozenset(challenge_types)
        self._env_classes = env_classes
        self.state = State.CLOSED
        self.counts = Counts()
        self.next_nonce = reserved
        self._reserved = reserved
        self._pace = Pace(credits)
        self.lanes = Lanes(lanes, batchable, self._pace.group_size)
        self.answers = Answers()
        self.credits = 0  # given to the orchestrator and not used by it yet
        self.paused = self.stopping = self._leaving = False
        self._deadline_ms = 0
        self.chain = ""
        self._heartbeat_interval_ms = 0
        self._heartbeat_ms = 0
        self._down_since_ms = 0
        self._nacks: list[pb.Nack] = []

    def step(self, event: Event, now_ms: int) -> Effects:
        """Apply one event. `now_ms` is Unix milliseconds. A violation closes the stream, it is not raised."""
        effects = Effects()
        try:
            _ON[type(event)](self, event, now_ms, effects)
        except ProtocolViolation as violation:
            effects.notes.append(("error", "protocol violated", {"cause": str(violation)}))
            effects.close = str(violation)
        if effects.close is None:
            effects.run += self.lanes.assign(now_ms)
            self._flush(effects)
            self._leave_when_done(now_ms, effects)
        return effects

    # ---- the stream

    def _move(self, what: str) -> None:
        target = TRANSITIONS.get((self.state, what))
        if target is None:
            raise ProtocolViolation(f"{what} while {self.state.value}")
        self.state = target

    def _dialled(self, event: Dialled, now_ms: int, effects: Effects) -> None:
        self._move("dialled")

    def _ended(self, event: StreamEnded, now_ms: int, effects: Effects) -> None:
        # Leases belong to a stream: the orchestrator gives their jobs to others when it loses it.
        self._move("ended")
        effects.cancel += self.lanes.reset()
        self.answers.clear()
        self._nacks.clear()
        self.credits = 0
        if not self.stopping:
            self._leaving, self._deadline_ms = False, 0

    def _received(self, event: Received, now_ms: int, effects: Effects) -> None:
        what = event.message.WhichOneof("message")
        if what is None:
            raise ProtocolViolation("empty message")
        self._move(what)
        _ON_MESSAGE[what](self, getattr(event.message, what), now_ms, effects)

    def _greeting(self, greeting: Greeting, now_ms: int, effects: Effects) -> None:
        if len(greeting.nonce) != 32 or not valid_public_key(greeting.public_key):
            raise ProtocolViolation("greeting without a 32-byte nonce and a public key")
        self.chain = greeting.chain_id
        body = hello_body(greeting.nonce, greeting.public_key, self._key.public, self._capabilities)
        signature = envelope.sign(self._key, "hello", self.chain, body)
        hello = Hello(public_key=self._key.public, capabilities=self._capabilities, signature=signature)
        effects.send.append(pb.WorkRequest(hello=hello))

    def _welcome(self, welcome: pb.Welcome, now_ms: int, effects: Effects) -> None:
        self._heartbeat_interval_ms = max(welcome.heartbeat_interval_ms, 1)
        self._heartbeat_ms = now_ms
        self.lanes.utilisation(now_ms, 0)
        effects.notes.append(("info", "joined", {"chain": self.chain}))
        if self.paused:
            self._move("pause")
            self._beat(now_ms, effects)

    def _jobs(self, batch: pb.JobBatch, now_ms: int, effects: Effects) -> None:
        jobs: Sequence[pb.Job] = batch.jobs
        if self.state is State.DRAINING:
            self._refuse(jobs, "DRAINING", "this worker takes no new jobs")
        else:
            if len(jobs) > self.credits:
                self._refuse(jobs[self.credits :], "NO_CREDIT", f"{self.credits} credits for {len(jobs)} jobs")
                jobs = jobs[: self.credits]
            ready: list[pb.Job] = []
            for job in jobs:
                if not self._acceptable(job):
                    continue
                if job.inputs or job.needs:
                    self.lanes.hold(job)
                    effects.fetch.append(job)
                else:
                    ready.append(job)
            self.lanes.add(ready)
        self.credits = max(self.credits - len(batch.jobs), 0)

    def _acceptable(self, job: pb.Job) -> bool:
        if job.lease_id in self.lanes.held or job.lease_id in self.answers:
            raise ProtocolViolation(f"lease {job.lease_id} was given twice")
        if len(job.task_id) != 32:
            self._nack(job, pb.NACK_KIND_POISON, "INVALID_JOB", f"task_id has {len(job.task_id)} bytes, not 32")
            return False
        if job.challenge_type not in self._types:
            self._nack(job, pb.NACK_KIND_RETRYABLE, "UNSUPPORTED", f"no task type {job.challenge_type[:64]!r} here")
            return False
        return True

    def _fetched(self, event: Fetched, now_ms: int, effects: Effects) -> None:
        job = event.job
        if self.lanes.held.get(job.lease_id) is not job:
            return  # revoked, or its stream is gone
        if event.failure is None:
            self.lanes.release(job, event.files)
        else:
            del self.lanes.held[job.lease_id]
            self._nack(job, *event.failure)

    def _stored(self, event: Stored, now_ms: int, effects: Effects) -> None:
        job = event.storing.job
        if self.lanes.held.get(job.lease_id) is not job:
            return
        del self.lanes.held[job.lease_id]
        if event.failure is None:
            stored = (event.output, event.unit_digests, event.storing.done.lane)
            self._commit([job], [(event.storing.done, event.storing.at)], effects, stored)
        else:
            self._nack(job, *event.failure)

    def _challenges(self, batch: pb.ChallengeBatch, now_ms: int, effects: Effects) -> None:
        """All that is quick to open is answered in one round trip; large trees are built beside the stream."""
        opened: list[pb.JobOpening] = []
        for challenge in batch.challenges:
            lease, seed, k = challenge.lease_id, challenge.seed, challenge.k
            answer = self.answers.get(lease)
            if answer is None:  # its verdict crossed the challenge
                continue
            if len(seed) != 32 or min(k, answer.count) > MAX_CHALLENGED:
                raise ProtocolViolation(
                    f"challenge of lease {lease}: seed of {len(seed)} bytes (32), k={k} (at most {MAX_CHALLENGED})"
                )
            if answer.count > QUICK_UNITS or answer.spooled_bytes:
                effects.open.append(Challenged(lease, answer, seed, k))
            else:
                opened.append(pb.JobOpening(lease_id=lease, openings=answer.open(seed, k)))
        effects.send += outgoing.opening_batches(opened)

    def _opened(self, event: Opened, now_ms: int, effects: Effects) -> None:
        if self.answers.get(event.lease_id) is not event.answer:
            return  # the stream ended meanwhile, and the next one may have a lease of the same number
        if event.failure:
            effects.notes.append(("error", "challenge not answered", {"cause": event.failure}))
        else:
            opening = pb.JobOpening(lease_id=event.lease_id, openings=event.openings, artifact=event.artifact)
            effects.send += outgoing.opening_batches([opening])

    def _verdicts(self, batch: pb.VerdictBatch, now_ms: int, effects: Effects) -> None:
        for verdict in batch.verdicts:
            found = [(lease, self.answers.settle(lease)) for lease in verdict.lease_ids]
            known = [(lease, answer) for lease, answer in found if answer is not None]
            if verdict.kind == pb.VERDICT_KIND_SETTLED:
                self.counts.settled += len(known)
                continue
            self.counts.refused += len(known)
            if not known or verdict.kind == pb.VERDICT_KIND_STALE:
                continue
            lease, answer = known[0]
            fields = {"lease": lease, "task": answer.task_id.hex(), "job": answer.index, "jobs": len(known)}
            fields |= {"verdict": pb.VerdictKind.Name(verdict.kind), "reason": verdict.reason}
            effects.notes.append(("warning", "result refused", fields))

    def _revokes(self, batch: pb.RevokeBatch, now_ms: int, effects: Effects) -> None:
        dropped, empty = self.lanes.drop(batch.lease_ids)
        effects.cancel += empty
        self._refuse(dropped, "REVOKED", "")

    def _drain(self, notice: Any, now_ms: int, effects: Effects) -> None:
        until_ms = notice.until_ms if notice.until_ms > now_ms else now_ms + 30_000
        self._deadline_ms = min(self._deadline_ms or until_ms, until_ms)
        self._leaving = True
        effects.notes.append(("info", "orchestrator drains", {"cause": notice.cause[:256], "until_ms": until_ms}))

    # ---- the owner

    def _pause(self, event: Pause, now_ms: int, effects: Effects) -> None:
        self.paused = True
        if event.leave:
            self.stopping = self._leaving = True
            self._deadline_ms = event.deadline_ms
        if self.state is State.READY:
            self._move("pause")
            self._beat(now_ms, effects)
        elif self.state in (State.GREETING, State.JOINING) and event.leave:
            effects.close = "leaving"

    def _resume(self, event: Resume, now_ms: int, effects: Effects) -> None:
        if self.stopping:
            return
        self.paused = False
        if self.state is State.DRAINING and not self._leaving:
            self._move("resume")
            self._beat(now_ms, effects)

    def _leave_when_done(self, now_ms: int, effects: Effects) -> None:
        if self.state is not State.DRAINING or not self._leaving:
            return
        late = now_ms >= self._deadline_ms
        if (self.lanes.held or self.answers) and not late:
            return
        dropped, empty = self.lanes.drop(list(self.lanes.held))
        effects.cancel += empty
        self._refuse(dropped, "DRAINING", "not finished before this worker left")
        self._flush(effects)
        effects.send.append(pb.WorkRequest(goodbye=Goodbye(cause="drained" if not late else "drain deadline passed")))
        self._move("left")
        effects.close = "drained"

    # ---- the executors

    def _lane_up(self, event: LaneUp, now_ms: int, effects: Effects) -> None:
        self.lanes.lane_up(event.lane)
        self._down_since_ms = 0

    def _lane_down(self, event: LaneDown, now_ms: int, effects: Effects) -> None:
        ran = self.lanes.lane_down(event.lane, now_ms)
        if not self.lanes.working:
            self._down_since_ms = self._down_since_ms or now_ms
        for job, deaths in ran:
            poison = deaths >= KILLS_OF_A_POISON_JOB and len(ran) == 1
            kind = pb.NACK_KIND_POISON if poison else pb.NACK_KIND_RETRYABLE
            self._nack(job, kind, "EXECUTOR_DIED", f"the executor died while running this job ({deaths} times)")
        jobs = [f"{job.task_id.hex()}/{job.index}" for job, _ in ran[:8]]
        effects.notes.append(("warning", "executor died", {"lane": event.lane, "jobs": len(ran), "first": jobs}))

    def _finished(self, event: Finished, now_ms: int, effects: Effects) -> None:
        jobs: list[pb.Job] = []
        rows: list[tuple[GroupDone, int]] = []
        for done in event.groups:
            group = self.lanes.finish(done.group_id, now_ms)
            if group is None:
                continue
            if not group.stale:
                self._pace.observe(group.challenge_type, len(group.leases), done.wall_us)
            for position, lease in enumerate(group.leases if not group.stale else ()):
                job = self.lanes.held.pop(lease, None)
                if job is None:
                    continue
                self.lanes.absolve(job)
                failure = done.failures.get(position)
                if failure is not None:
                    self._nack(job, *failure)
                    fields = {"lease": lease, "task": job.task_id.hex(), "job": job.index, "reason": failure[1]}
                    effects.notes.append(("warning", "job failed", {**fields, "detail": failure[2][:MAX_DETAIL]}))
                elif position in done.outputs:
                    # Held, so that heartbeats keep its lease, until whoever audits can read the output.
                    self.lanes.hold(job)
                    effects.store.append(Storing(job, done, position))
                else:
                    jobs.append(job)
                    rows.append((done, position))
        for at in range(0, len(jobs), MAX_BATCH):
            self._commit(jobs[at : at + MAX_BATCH], rows[at : at + MAX_BATCH], effects)

    def _commit(
        self, jobs: list[pb.Job], rows: list[tuple[GroupDone, int]], effects: Effects,
        stored: tuple[bytes, bytes, int] | None = None,
    ) -> None:  # fmt: skip
        """`stored`: artifacts of output and unit digests of the one job, and the lane that ran it."""
        first = self.next_nonce
        batch = outgoing.pack(self._key.public, jobs, [done.result_hashes[at] for done, at in rows], first)
        self.next_nonce += len(jobs)
        if self.next_nonce > self._reserved:
            self._reserved = effects.persist = self.next_nonce + NONCES_AHEAD
        keep = self.answers.keep
        leaves = outgoing.leaf_hashes(batch)
        for nonce, job, leaf, (done, at) in zip(range(first, self.next_nonce), jobs, leaves, rows, strict=True):
            keep(job.lease_id, Answer(job.task_id, job.index, nonce, leaf, *done.hand_over(at)))
        message = pb.CommitmentBatch(
            lease_ids=[job.lease_id for job in jobs],
            commitments=batch,
            signature=sign_leaves(self._key, self.chain, leaves),
            compute_us=[done.compute_us[at] for done, at in rows],
        )
        if stored is not None:
            message.outputs.append(stored[0])
            message.unit_digests.append(stored[1])
            message.env_class = self._env_classes[stored[2]] if self._env_classes else ""
        self.counts.done += len(jobs)
        effects.send.append(pb.WorkRequest(commitments=message))

    # ---- time, nacks, credits

    def _tick(self, event: Tick, now_ms: int, effects: Effects) -> None:
        if self._down_since_ms and now_ms - self._down_since_ms >= LANES_LOST_AFTER_MS:
            # Nobody here can run them soon; another worker may.
            dropped, _ = self.lanes.drop(list(self.lanes.held))
            self._refuse(dropped, "EXECUTOR_DIED", "no executor of this worker is up")
        if self.state in (State.READY, State.DRAINING) and now_ms - self._heartbeat_ms >= self._heartbeat_interval_ms:
            self._beat(now_ms, effects)

    def _beat(self, now_ms: int, effects: Effects) -> None:
        shares = self.lanes.utilisation(now_ms, now_ms - self._heartbeat_ms)
        self._heartbeat_ms = now_ms
        beat = pb.Heartbeat(running_lease_ids=list(self.lanes.held), utilisation=shares, draining=self.paused)
        effects.send.append(pb.WorkRequest(heartbeat=beat))

    def _nack(self, job: pb.Job, kind: int, reason: str, detail: str) -> None:
        number = pb.NackKind.ValueType(kind)
        self._nacks.append(pb.Nack(lease_id=job.lease_id, kind=number, reason=reason, detail=detail[:MAX_DETAIL]))
        self.counts.nacked += 1

    def _refuse(self, jobs: Sequence[pb.Job], reason: str, detail: str) -> None:
        for job in jobs:
            self._nack(job, pb.NACK_KIND_RETRYABLE, reason, detail)

    def _flush(self, effects: Effects) -> None:
        """Nacks, then the credits that commitments and nacks made free: one message each at most."""
        for at in range(0, len(self._nacks), MAX_BATCH):
            effects.send.append(pb.WorkRequest(nacks=pb.NackBatch(nacks=self._nacks[at : at + MAX_BATCH])))
        self._nacks.clear()
        if self.state is not State.READY:
            return
        depth = self._pace.depth(self.lanes.working)
        taken = self.credits + len(self.lanes.held)
        more = min(depth, self.answers.room(self.next_nonce)) - taken
        # A Ready for every single job would be a message per job; half of the depth keeps work coming.
        if more > 0 and (more * 2 >= depth or not taken):
            self.credits += more
            effects.send.append(pb.WorkRequest(ready=pb.Ready(credits=more)))


_ON: dict[type[Any], Callable[[Core, Any, int, Effects], None]] = {
    Dialled: Core._dialled,
    StreamEnded: Core._ended,
    Received: Core._received,
    Finished: Core._finished,
    Partial: lambda core, event, now_ms, effects: effects.send.extend(core.lanes.partials(event.group_id, event.text)),
    LaneUp: Core._lane_up,
    LaneDown: Core._lane_down,
    Opened: Core._opened,
    Fetched: Core._fetched,
    Stored: Core._stored,
    Tick: Core._tick,
    Pause: Core._pause,
    Resume: Core._resume,
}
_ON_MESSAGE: dict[str, Callable[[Core, Any, int, Effects], None]] = {
    "greeting": Core._greeting,
    "welcome": Core._welcome,
    "jobs": Core._jobs,
    "challenges": Core._challenges,
    "verdicts": Core._verdicts,
    "revokes": Core._revokes,
    "drain": Core._drain,
}
