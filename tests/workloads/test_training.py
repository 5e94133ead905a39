"""The `training` type: what its check holds, and what rounds of untrusted shards come to."""

import json
from dataclasses import replace

import numpy as np
import pytest

from computemesh.kernels.training import local, outer
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.merkle import leaf_hash
from computemesh.workloads import Claim, Context, training
from computemesh.workloads import training_job as tj
from computemesh.workloads import training_run as tr
from tests.workloads.training_tasks import (
    DIGITS,
    TASK,
    TASK_ID,
    TaskFiles,
    accuracy,
    artifacts,
    digits_npz,
    jobs,
    run_task,
    text,
)


@pytest.fixture
def files(tmp_path):
    return TaskFiles(tmp_path)


@pytest.fixture
def payload(files):
    return {**DIGITS, "dataset": files.put(digits_npz())}


def claim(spec, outcome, index):
    previous = leaf_hash(outcome.digests[32 * index - 32 : 32 * index]) if index else None
    return Claim(index, outcome.units(index), previous)


def digest(outcome, index):
    return outcome.digests[32 * index : 32 * index + 32]


# ------------------------------------------------------------------------------------------------ training


def test_two_shards_in_three_rounds_learn_the_digits(files, payload):
    params, outcomes = run_task({**payload, "rounds": 3, "workers": 2, "epochs": 12}, files, audit=True)
    found = artifacts(params, outcomes)
    assert accuracy(found, tj.whole(params).model) > 0.93
    losses = json.loads(found["loss.json"])["curve"]["loss"]
    assert len(losses) == 6 * tj.whole(params).segments
    assert losses[-1] < losses[0] / 5
    assert found["loss.csv"].decode().splitlines()[0] == "round,shard,step,loss"
    assert found["loss.png"].startswith(b"\x89PNG")


def test_one_shard_and_one_round_are_the_plain_optax_loop(files, payload):
    import jax
    import jax.numpy as jnp
    import optax
    from safetensors.numpy import load

    params, outcomes = run_task({**payload, "epochs": 1}, files)
    job, run = tj.whole(params), tr.Run(tj.whole(params), jobs(payload, files)[1][0].files)
    weights = tr.split_weights(job, tr.read_outer(job, run.outer())[0])
    rules = optax.adamw(3e-3, weight_decay=0.01)
    state = rules.init(weights)

    @jax.jit
    def step(weights, state, x, y):
        def loss(w):
            hidden = jax.nn.relu(x @ w["layers.0.weight"].T + w["layers.0.bias"])
            logits = hidden @ w["layers.1.weight"].T + w["layers.1.bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, slopes = jax.value_and_grad(loss)(weights)
        updates, state = rules.update(slopes, state, weights)
        return optax.apply_updates(weights, updates), state, value

    losses = []
    for number in range(job.local_steps):
        x, y = run.data.batch(job.seed, range(32 * number, 32 * number + 32), 0, 1)
        weights, state, value = step(weights, state, x, y)
        losses.append(float(value))
    found = load(artifacts(params, outcomes)["model/model.safetensors"])
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, np.asarray(weights[name]), rtol=2e-4, atol=2e-6)
    mine = tr.read_state(job, outcomes[0].output[job.outer_bytes :]).losses
    np.testing.assert_allclose(mine, losses, rtol=1e-4)
    assert jnp.asarray(losses[-1]) < losses[0]


@pytest.mark.parametrize(
    ("name", "optimizer"), [("cnn", "sgd"), ("cnn", "momentum"), ("char_transformer", "adam"), ("cnn", "adamw")]
)
def test_every_model_and_optimizer_learns_and_passes_its_audit(files, name, optimizer):
    sizes = {"cnn": {"filters": [8, 8]}, "char_transformer": {"hidden": 16, "layers": 1, "heads": 2, "context": 16}}
    rate = {"sgd": 0.3, "momentum": 0.05}.get(optimizer, 1e-2)
    _, outcomes = run_task(
        {
            "model_architecture": {"name": name, **sizes[name]}, "optimizer": optimizer, "learning_rate": rate,
            "dataset": files.put(text() if name == "char_transformer" else digits_npz()), "examples": 480,
            "batch_size": 16, "workers": 1, "rounds": 1,
        }, files, audit=True,
    )  # fmt: skip
    job = tj.read_job(jobs_of(name, sizes[name], optimizer))
    losses = tr.read_state(job, outcomes[0].output[job.outer_bytes :]).losses
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def jobs_of(name, sizes, optimizer):
    payload = {
        "model_architecture": {"name": name, **sizes}, "optimizer": optimizer, "dataset": "00" * 32,
        "examples": 480, "batch_size": 16,
    }  # fmt: skip
    return TASK.split(TASK.parse(payload), TASK_ID)[0]


def test_a_round_needs_every_job_of_the_round_before_and_nothing_else(payload):
    specs = TASK.split(TASK.parse({**payload, "rounds": 3, "workers": 2}), TASK_ID)
    assert [spec.needs for spec in specs] == [(), (), (0, 1), (0, 1), (2, 3), (2, 3)]


def test_half_a_surrogate_pair_is_refused_by_field(payload):
    with pytest.raises(InvalidArgument, match="model_architecture: holds text with half of a surrogate pair"):
        TASK.parse({**payload, "model_architecture": {"name": "mlp", "hidden": [{"\ud8ff": 60}]}})


def test_however_many_fields_are_wrong_the_text_stays_short(payload):
    with pytest.raises(InvalidArgument) as refused:
        TASK.parse({**payload, **{f"unknown{number}": number for number in range(40)}})
    assert len(str(refused.value)) < 2000
    assert "(10 problems)" in str(refused.value)
    assert len(refused.value.violations) == 10


def test_a_repeated_shape_is_compiled_once(files, payload):
    payload |= {"model_architecture": {"name": "mlp", "hidden": [17]}, "epochs": 1}
    before = len(local.traces)
    params, outcomes = run_task({**payload, "rounds": 2, "workers": 2}, files, audit=True)
    run_task({**payload, "rounds": 2, "workers": 2, "learning_rate": 1e-2, "seed": "other"}, files, audit=True)
    assert len(local.traces) == before + 1
    assert len(outcomes) == 4
    assert tj.whole(params).segments > 8


# ------------------------------------------------------------------------------------------------ the check


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(spec, outcome) of a job of the second of two rounds."""
    files = TaskFiles(tmp_path_factory.mktemp("trained"))
    payload = {**DIGITS, "dataset": files.put(digits_npz()), "rounds": 2, "workers": 2}
    _, outcomes = run_task(payload, files)
    return jobs(payload, files)[1][3], outcomes[3]


def test_every_segment_alone_gives_the_bytes_of_the_whole(trained):
    spec, outcome = trained
    claims = [claim(spec, outcome, index) for index in range(TASK.layout(spec).count)]
    run = tr.Run(tj.read_job(spec), spec.files)
    for each in claims[1:]:
        start, end = training._opened(run, each)
        assert run.advance(start, each.index).pack() == end.pack()
    assert TASK.expected_digests(spec, claims) == [digest(outcome, c.index) for c in claims]


def spoilt(outcome, index, change):
    unit = bytearray(outcome.units(index))
    change(unit)
    return bytes(unit)


def test_a_wrong_end_is_refused_wherever_it_is_wrong(trained):
    spec, outcome = trained
    job, index = tj.read_job(spec), 7
    end, honest = job.state_bytes, claim(spec, outcome, index)
    wrong = {"weight": end, "slot": end + 4 * job.weights, "count": end + 4 * job.weights, "cursor": 2 * end - 8}
    for name, at in wrong.items():
        unit = spoilt(outcome, index, lambda u, at=at: u.__setitem__(at + 2, u[at + 2] ^ 0x40))
        assert training.check_batch(spec, [replace(honest, unit=unit)]) == [None], name
    losses = end + 4 * (job.weights + job.slots)
    for segment in (0, index - 1, index, job.segments - 1):
        unit = spoilt(outcome, index, lambda u, at=losses + 4 * segment: u.__setitem__(at + 2, u[at + 2] ^ 0x20))
        assert training.check_batch(spec, [replace(honest, unit=unit)]) == [None], segment
    assert training.check_batch(spec, [honest]) == [digest(outcome, index)]


def test_a_start_that_was_not_committed_is_refused(trained):
    spec, outcome = trained
    honest = claim(spec, outcome, 5)
    for index in (1, 5):
        unit = spoilt(outcome, index, lambda u: u.__setitem__(0, u[0] ^ 1))
        assert TASK.check(spec, index, unit, claim(spec, outcome, index).previous_root) is None
    assert TASK.check(spec, 5, outcome.units(6), honest.previous_root) is None
    assert TASK.check(spec, 6, honest.unit, honest.previous_root) is None  # an honest segment at another's place
    assert TASK.check(spec, 5, honest.unit[:-4], honest.previous_root) is None
    assert TASK.check(spec, 5, b"", honest.previous_root) is None
    assert TASK.check(spec, 5, honest.unit, None) is None
    with pytest.raises(InvalidProof):
        TASK.check(spec, TASK.layout(spec).count, honest.unit, honest.previous_root)


def test_an_honest_rounding_passes_and_a_cheaper_precision_does_not(trained):
    spec, _ = trained
    job, honest = tj.read_job(spec), claim(*trained, 9)
    size, weights = job.state_bytes, 4 * job.weights
    start = np.frombuffer(honest.unit, "<f4", job.weights)
    end = np.frombuffer(honest.unit, "<f4", job.weights, size)

    def claimed(numbers):
        unit = honest.unit[:size] + numbers.astype("<f4").tobytes() + honest.unit[size + weights :]
        return TASK.check(spec, 9, unit, honest.previous_root)

    update = end - start
    assert claimed(start + update * np.float32(1 + 1e-6)) is not None
    noise = np.random.default_rng(1).normal(size=len(update)) * np.linalg.norm(update) / len(update) ** 0.5
    assert claimed(end + 1e-4 * noise) is None
    assert claimed(start + update * 1.0005) is None
    assert claimed(np.full_like(end, np.nan)) is None


def test_bfloat16_gradients_are_found_in_every_segment(trained, monkeypatch):
    import jax.numpy as jnp

    from computemesh.kernels.training import networks

    spec, outcome = trained
    job, run = tj.read_job(spec), tr.Run(tj.read_job(spec), spec.files)
    half, loss = jnp.bfloat16, networks.loss
    monkeypatch.setattr(
        networks, "loss",
        lambda m, t, x, y: loss(m, {k: v.astype(half) for k, v in t.items()}, x.astype(half), y).astype(jnp.float32),
    )  # fmt: skip
    local.compiled.cache_clear()
    claims = []
    for index in range(2, job.segments + 1, 4):
        start = tr.read_state(job, outcome.units(index)[: job.state_bytes])
        unit = start.pack() + run.advance(start, index).pack()
        claims.append(replace(claim(spec, outcome, index), unit=unit))
    monkeypatch.undo()
    local.compiled.cache_clear()
    assert len(claims) > 8
    assert TASK.expected_digests(spec, claims) == [None] * len(claims)


def test_a_worker_that_invents_the_outer_step_is_always_found(trained):
    spec, outcome = trained
    job = tj.read_job(spec)
    forged = spoilt(outcome, 0, lambda u: u.__setitem__(3, u[3] ^ 1)) + outcome.output[job.outer_bytes :]
    with pytest.raises(InvalidProof, match="does not begin with the outer step"):
        TASK.output_digests(spec, forged)
    with pytest.raises(InvalidProof, match=r"bytes, not"):
        TASK.output_digests(spec, outcome.output[:-1])
    with pytest.raises(InvalidProof, match="does not end where its round ends"):
        TASK.output_digests(spec, outcome.output[:-8] + bytes(8))
    assert TASK.expected_digests(spec, [Claim(0, b"", None)]) == [digest(outcome, 0)]


def test_a_sample_is_a_small_share_of_a_job_and_the_output_shows_its_end(files, payload):
    params = TASK.parse({**payload, "epochs": 40, "workers": 2, "rounds": 2})
    job = tj.whole(params)
    assert 8 / job.segments <= 0.035
    assert job.local_steps * job.rounds * job.workers * job.batch >= 40 * 1437
    _, outcomes = run_task({**payload, "epochs": 1}, files)
    spec = jobs({**payload, "epochs": 1}, files)[1][0]
    shown = TASK.output_digests(spec, outcomes[0].output)
    count = TASK.layout(spec).count
    assert shown == {0: digest(outcomes[0], 0), count - 1: digest(outcomes[0], count - 1)}


# ------------------------------------------------------------------------------------------------ rounds


@pytest.mark.parametrize("workers", [2, 4, 5])
@pytest.mark.parametrize("poison", ["huge", "reversed", "nan", "noise"])
def test_one_poisoned_delta_that_slips_through_does_not_ruin_the_model(files, payload, workers, poison):
    def lying(spec, context):
        outcome, job = TASK.execute(spec, context), tj.read_job(spec)
        if job.shard or job.round != 1:
            return outcome
        begun, raw = outcome.output[: job.outer_bytes], outcome.output[job.outer_bytes :]
        start, state = tr.read_outer(job, begun)[0], tr.read_state(job, raw)
        drawn = np.random.default_rng(0).normal(size=job.weights).astype(np.float32)
        ends = {
            "huge": start + 1e30, "reversed": start - 20 * (state.weights - start),
            "nan": np.full_like(start, np.nan), "noise": start + 100 * drawn,
        }  # fmt: skip
        with np.errstate(all="ignore"):
            poisoned = state._replace(weights=ends[poison].astype(np.float32), slots=state.slots * np.float32(np.inf))
        return replace(outcome, output=begun + poisoned.pack())

    asked = {**payload, "epochs": 12, "rounds": 4, "workers": workers, "outer_learning_rate": 1, "outer_momentum": 0}
    params, outcomes = run_task(asked, files, execute=lying)
    assert accuracy(artifacts(params, outcomes), tj.whole(params).model) > 0.9


def test_the_outer_step_is_the_formula_and_its_aggregate_is_robust():
    rng = np.random.default_rng(5)
    start, momentum = rng.normal(size=(2, 50)).astype(np.float32)
    delta = rng.normal(size=50)
    weights, moved = outer.step(start, momentum, [(start + delta).astype(np.float32)], 0.7, 0.9)
    exact = (start + delta).astype(np.float32).astype(np.float64) - start
    expected = 0.9 * momentum.astype(np.float64) + exact
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    np.testing.assert_allclose(weights, start + 0.7 * (exact + 0.9 * expected), rtol=1e-5, atol=1e-6)
    same, _ = outer.step(start, 0 * start, [(start + delta).astype(np.float32)], 1.0, 0.0)
    assert (same == (start + delta).astype(np.float32)).all()
    honest = [delta + 0.1 * rng.normal(size=50) for _ in range(7)]
    for liars in (1, 2):
        found = outer.aggregate([*honest[: 8 - liars], *[-1e6 * delta] * liars])
        assert np.linalg.norm(found - delta) < 0.1 * np.linalg.norm(delta)
    kept = outer.step(start, momentum, [np.full(50, np.inf, np.float32)], 1.0, 0.0)
    assert (kept[0] == start).all()
    assert (kept[1] == momentum).all()


def test_the_checkpoint_lies_between_its_shards_and_not_beyond(files, payload):
    from safetensors.numpy import load

    params, outcomes = run_task({**payload, "workers": 2, "epochs": 2}, files)
    job = tj.whole(params)
    ends = [tr.read_state(job, outcome.output[job.outer_bytes :]).weights for outcome in outcomes]
    start = tr.read_outer(job, outcomes[0].output)[0]
    tensors = load(artifacts(params, outcomes)["model/model.safetensors"])
    found = np.concatenate([tensors[name].ravel() for name in job.trainable])
    moved, way = np.linalg.norm(found - start), [np.linalg.norm(end - start) for end in ends]
    assert moved <= min(way)
    assert np.linalg.norm(found - np.mean(ends, 0)) < 0.1 * min(way)


def test_one_shard_that_lies_about_the_round_s_beginning_is_outvoted(files, payload):
    _, outcomes = run_task({**payload, "workers": 3, "epochs": 1}, files)
    job = tj.read_job(jobs({**payload, "workers": 3, "epochs": 1}, files)[1][0])
    outputs = [outcome.output for outcome in outcomes]
    honest = tr.fold(job, outputs)
    for liar in range(3):
        changed = list(outputs)
        changed[liar] = bytes(4) + changed[liar][4:]
        assert tr.fold(job, changed) == honest


def test_a_dead_worker_costs_its_job_and_nothing_else(files, payload):
    asked = {**payload, "rounds": 3, "workers": 2, "epochs": 2}
    _, whole = run_task(asked, files)
    runs, died = [], []

    def mortal(spec, context):
        if spec.index == 3 and not died:
            died.append(spec.index)

            def last_breath(fraction):
                if fraction > 0.5:
                    raise ConnectionError

            with pytest.raises(ConnectionError):
                TASK.execute(spec, Context(progress=last_breath))
        runs.append(spec.index)
        return TASK.execute(spec, context)

    again = TaskFiles(files.root)
    params, outcomes = run_task(asked, again, execute=mortal)
    assert (runs, died) == (list(range(6)), [3])
    assert [outcome.digests for outcome in outcomes] == [outcome.digests for outcome in whole]
    assert artifacts(params, outcomes) == artifacts(params, whole)


def test_a_preview_shows_the_curve_so_far(files, payload):
    params, outcomes = run_task({**payload, "epochs": 1}, files)
    assert TASK.preview(params, {}) is None
    assert TASK.preview(params, {0: outcomes[0].output}).data.startswith(b"\x89PNG")
