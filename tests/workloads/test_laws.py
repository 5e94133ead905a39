"""Laws every task type keeps; a new one only adds its small payload here."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from computemesh import workloads
from computemesh.trust.audit import JobTree, fold_opening, sample, verify_previous
from computemesh.trust.errors import InvalidArgument
from computemesh.workloads import Claim, Context, JobSpec, bind, function, worker_seed
from computemesh.workloads.contract import MAX_PARAMS_BYTES, JobResult, segment_root
from tests.workloads import inference_models, programs, training_tasks

SMALL = {
    "function": {"function_name": "sum", "items": [{"values": [1, 2.5]}, {"values": [4]}]},
    "inference": inference_models.SMALL,
    "noop": {"jobs": 5, "bytes": 20},
    "program": programs.SMALL,
    "rendering": {"scene": "cornell", "width": 32, "height": 16, "samples_per_pixel": 1, "seed": "law"},
    "simulation": {"system": "ode", "steps": 40, "frames": 4, "ensemble": 6, "jobs": 2, "parameters": {"spread": 0.1}},
    "synthetic": {"matrix_size": 64, "iterations": 3, "jobs": 2, "seed": "law"},
    "training": training_tasks.SMALL,
}
TASK_ID = bytes(range(32))
BINDING = worker_seed(bytes(32), "cpc1worker")
FILES = {
    "inference": inference_models.SmallFiles(),
    "program": programs.SmallFiles(),
    "training": training_tasks.SmallFiles(),
}

every_type = pytest.mark.parametrize("name", workloads.names())


def small_job(name, **changes):
    task = workloads.get(name)
    params = task.parse({**SMALL[name], **changes})
    return task, params, assigned(name, task.split(params, TASK_ID)[0])


def assigned(name, spec):
    """The job as a worker gets it, with the files it reads."""
    return replace(bind(spec, BINDING), files=FILES.get(name))


@pytest.fixture(autouse=True)
def _exposed(monkeypatch):
    monkeypatch.setenv(function.FILES_VARIABLE, str(Path(__file__).parent / "exposed_functions.py"))


def test_every_registered_type_has_a_small_payload_here():
    assert set(SMALL) == set(workloads.names())


@every_type
def test_every_honest_unit_folds_to_the_result_hash(name):
    task, _, spec = small_job(name)
    layout = task.layout(spec)
    outcome = task.execute(spec, Context())
    tree = JobTree(layout, outcome.digests)
    assert len(outcome.digests) == 32 * layout.count
    assert (outcome.units is None) == task.exact
    units = [outcome.units(i) if outcome.units else b"" for i in range(layout.count)]
    openings = [tree.open(i, unit) for i, unit in enumerate(units)]
    claims = [Claim(o.index, o.unit, verify_previous(layout, o, tree.result_hash)) for o in openings]
    together = task.expected_digests(spec, claims)
    for opening, claim, digest in zip(openings, claims, together, strict=True):
        assert fold_opening(layout, opening, digest) == tree.result_hash
        assert task.check(spec, claim.index, claim.unit, claim.previous_root) == digest


@every_type
def test_recomputing_all_units_gives_what_the_worker_committed(name):
    task, params, _ = small_job(name)
    specs = [assigned(name, spec) for spec in task.split(params, TASK_ID)]
    executed = task.execute_all(specs, Context())
    assert [outcome.digests for outcome in executed] == [task.execute(spec, Context()).digests for spec in specs]
    if task.exact:
        assert task.recompute(specs) == [outcome.digests for outcome in executed]
    else:
        with pytest.raises(TypeError, match="not exact"):
            task.recompute(specs)


@every_type
def test_an_output_shows_what_was_committed(name):
    task, _, spec = small_job(name)
    outcome = task.execute(spec, Context())
    if task.output_digests is None:
        assert outcome.output == b""
        return
    assert len(outcome.output) <= task.output_bytes(spec)
    shown = task.output_digests(spec, outcome.output)
    assert shown
    assert all(outcome.digests[32 * i : 32 * i + 32] == digest for i, digest in shown.items())


@every_type
def test_splitting_is_lazy_repeatable_and_numbered(name):
    task, params, _ = small_job(name)
    jobs = task.split(params, TASK_ID)
    assert len(jobs) == task.jobs(params)
    assert [spec.index for spec in jobs] == list(range(len(jobs)))
    assert jobs[1:] == [jobs[i] for i in range(1, len(jobs))]
    assert jobs[::-1] == list(jobs)[::-1]
    assert all(spec.task_id == TASK_ID and len(spec.params) <= MAX_PARAMS_BYTES for spec in jobs)
    assert jobs[0] != task.split(params, bytes(32))[0]
    with pytest.raises(IndexError):
        jobs[len(jobs)]


@every_type
def test_jobs_of_one_task_have_different_results(name):
    task, params, _ = small_job(name)
    outcomes = task.execute_all([assigned(name, spec) for spec in task.split(params, TASK_ID)], Context())
    assert len({outcome.digests for outcome in outcomes}) == len(outcomes)


@every_type
def test_floats_of_a_struct_are_whole_numbers(name):
    task = workloads.get(name)
    floats = {k: float(v) if isinstance(v, int) else v for k, v in SMALL[name].items()}
    assert task.parse(floats) == task.parse(SMALL[name])


@every_type
def test_an_unknown_field_is_refused_by_name(name):
    with pytest.raises(InvalidArgument, match="'colour' is not a field of a"):
        workloads.get(name).parse({**SMALL[name], "colour": 1})


@every_type
@pytest.mark.parametrize("params", [b"\x07", bytes(MAX_PARAMS_BYTES + 1)])
def test_params_from_the_network_raise_only_invalid_argument(name, params):
    task = workloads.get(name)
    with suppress(InvalidArgument):  # a noop job of one byte is fine; anything else than this error is not
        task.layout(JobSpec(TASK_ID, 0, params))


@every_type
def test_the_price_is_a_bound_in_whole_base_units(name):
    task, params, _ = small_job(name)
    estimate = task.price(params)
    assert isinstance(estimate.upper_bound_units, int)
    assert estimate.upper_bound_units > 0
    assert estimate.flops >= 0


@every_type
def test_results_assemble_to_artifacts_with_names_of_their_own(name):
    task, params, _ = small_job(name)
    outcomes = task.execute_all([assigned(name, spec) for spec in task.split(params, TASK_ID)], Context())
    artifacts = task.assemble(params, [JobResult(bytes([i]) * 32, o.output) for i, o in enumerate(outcomes)])
    assert len({artifact.name for artifact in artifacts}) == len(artifacts) > 0
    assert all("/" in artifact.media_type and artifact.data for artifact in artifacts)


def test_an_unknown_type_is_refused_with_the_known_names():
    known = ", ".join(workloads.names())
    with pytest.raises(InvalidArgument, match=f"'raytrace' is not a task type; known are: {known}") as refused:
        workloads.get("raytrace")
    assert refused.value.violations[0][0] == "challenge_type"


def test_importing_the_types_does_not_import_jax():
    code = "import sys, computemesh.workloads as w; w.get('synthetic'); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_seed_is_the_seed_documents_formula():
    from hashlib import sha256

    assert worker_seed(b"\x01" * 32, "cpc1abc") == sha256(b"\x01" * 32 + b"cpc1abc").digest()
    with pytest.raises(ValueError, match="32 bytes"):
        worker_seed(b"short", "cpc1abc")
    with pytest.raises(ValueError, match="32 bytes"):
        bind(JobSpec(TASK_ID, 0, b""), b"short")


@pytest.mark.parametrize("units", [1, 3, 4, 9])
def test_a_segment_root_known_early_is_the_whole_trees(units):
    from computemesh.trust.audit import Layout

    layout = Layout(3, units)
    digests = bytes(i % 251 for i in range(32 * layout.count))
    tree = JobTree(layout, digests)
    for segment in range(3):
        part = digests[32 * units * segment : 32 * units * (segment + 1)]
        assert segment_root(layout, part) == tree.segment_root(segment)


def test_a_million_jobs_cost_nothing_until_asked_for():
    task = workloads.get("noop")
    jobs = task.split(task.parse({"jobs": 1_000_000}), TASK_ID)
    assert len(jobs) == 1_000_000
    assert jobs[999_999].index == 999_999
    assert jobs[500_000:500_003][1] == jobs[500_001]


def test_one_sample_never_asks_for_more_than_the_job_has():
    task, _, spec = small_job("noop")
    assert sample(bytes(32), bytes(32), task.layout(spec).count, task.sample_size) == [0]
