"""Jobs that read files and leave outputs: held while bytes move, committed only once an auditor can read them."""

from __future__ import annotations

from dataclasses import replace

from computemesh.v1 import orchestrator_pb2 as pb
from tests.worker.world import World
from worker.events import Effects, Fetched, Finished, Stored

DIGEST = bytes([7]) * 32


class Reading(World):
    """A world whose jobs read an artifact, and which keeps what is to be fetched and stored."""

    def give_reading(self, count: int) -> list[pb.Job]:
        first = self.next_lease
        self.next_lease += count
        self.granted -= count
        given = range(first, first + count)
        self.given |= set(given)
        jobs = [
            pb.Job(lease_id=lease, task_id=bytes([9]) * 32, challenge_type="noop", lease_ms=5000, index=lease,
                   inputs=[DIGEST])
            for lease in given
        ]  # fmt: skip
        return self.get(jobs=pb.JobBatch(jobs=jobs)).fetch

    def leave(self, output: bytes) -> Effects:
        """The first group ends, and its first job leaves an output."""
        done = self.outcome(0)
        assert done is not None
        return self.do(Finished([replace(done, outputs={0: output})]))


def test_a_job_waits_for_its_files_and_then_runs_with_them() -> None:
    world = Reading()
    world.join()
    (job,) = world.give_reading(1)
    assert not world.running[0]
    assert job.lease_id in world.core.lanes.held
    world.do(Fetched(job, files="files"))
    (run,) = world.running[0]
    assert run.rows[0][4] == "files"
    world.finish()
    world.check()


def test_files_that_cannot_be_had_are_nobodys_fault() -> None:
    world = Reading()
    world.join()
    (job,) = world.give_reading(1)
    world.do(Fetched(job, failure=(int(pb.NACK_KIND_RETRYABLE), "INPUT_UNAVAILABLE", "gone")))
    assert job.lease_id in world.nacked
    world.check()


def test_files_of_a_stream_that_ended_start_nothing() -> None:
    world = Reading()
    world.join()
    (job,) = world.give_reading(1)
    world.get(revokes=pb.RevokeBatch(lease_ids=[job.lease_id]))
    world.do(Fetched(job, files="files"))
    assert not world.running[0]
    world.check()


def test_an_output_is_stored_before_its_commitment_and_heartbeats_keep_the_lease() -> None:
    world = Reading()
    world.join()
    (lease,) = world.give(1)
    (storing,) = world.leave(b"pixels").store
    assert lease not in world.committed
    assert lease in world.core.lanes.held
    assert (storing.job.lease_id, storing.done.outputs[storing.at]) == (lease, b"pixels")
    sent = world.do(Stored(storing, DIGEST, b"")).send
    (batch,) = [message.commitments for message in sent if message.WhichOneof("message") == "commitments"]
    assert list(batch.outputs) == [DIGEST]
    assert lease in world.committed
    world.check()


def test_an_output_that_cannot_be_stored_gives_the_job_back() -> None:
    world = Reading()
    world.join()
    (lease,) = world.give(1)
    (storing,) = world.leave(b"pixels").store
    world.do(Stored(storing, failure=(int(pb.NACK_KIND_RETRYABLE), "OUTPUT_NOT_STORED", "full")))
    assert lease in world.nacked
    world.check()
