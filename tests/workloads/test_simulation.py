"""The simulation type: its physics against independent references, its units against whoever spoils them."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from bench.rows.simulation import SMALL, accepted, downgraded, forged, job, other_class, spoilt
from computemesh.kernels.simulation import black_scholes, invariants
from computemesh.kernels.simulation.catalog import BY_NUMBER, MODELS, SYSTEMS
from computemesh.trust.audit import JobTree, verify_previous
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads import Claim, Context, JobSpec, get, simulation
from computemesh.workloads.contract import JobResult
from computemesh.workloads.simulation_job import HEAD, read_job

TASK = get("simulation")
TASK_ID = bytes(32)
every_system = pytest.mark.parametrize("system", SYSTEMS)


def run_task(**payload):
    """(params, one Outcome per job, results.npz) of a task run whole."""
    params = TASK.parse(payload)
    outcomes = [TASK.execute(spec, Context()) for spec in TASK.split(params, TASK_ID)]
    results = [JobResult(bytes(32), outcome.output) for outcome in outcomes]
    run = simulation._run(params, {i: result.output for i, result in enumerate(results)})
    return params, outcomes, run


def claims_of(spec, outcome, indices):
    layout, tree = TASK.layout(spec), JobTree(TASK.layout(spec), outcome.digests)
    openings = [tree.open(i, outcome.units(i)) for i in indices]
    return [Claim(o.index, o.unit, verify_previous(layout, o, tree.result_hash)) for o in openings]


# --- physics ---------------------------------------------------------------------------------------------------


def newton(t, y, mass):
    place, motion = y.reshape(2, 3, -1)
    apart = place[:, None, :] - place[:, :, None]
    cube = (apart**2).sum(0) ** 1.5 + np.eye(len(mass))
    return np.concatenate([motion.ravel(), (mass * apart / cube).sum(2).ravel()])


def test_three_bodies_move_as_scipy_says():
    parameters = {"start": "figure_eight", "order": 4, "dt": 0.001}
    _, _, run = run_task(system="nbody", parameters=parameters, steps=2000, frames=4)
    begin = run.history(0)[0]
    found = solve_ivp(newton, (0, 2.0), begin[:6].ravel(), method="DOP853", rtol=1e-12, atol=1e-12, args=(begin[6],))
    assert np.abs(run.history(0)[-1][:6].ravel() - found.y[:, -1]).max() < 1e-9


def test_yoshida_converges_with_the_fourth_power_and_leapfrog_with_the_second():
    errors = {}
    for order in (2, 4):
        for dt in (0.01, 0.005):
            parameters = {"start": "figure_eight", "order": order, "dt": dt}
            _, _, run = run_task(system="nbody", parameters=parameters, steps=round(2 / dt), frames=1)
            begin = run.history(0)[0]
            found = solve_ivp(newton, (0, 2.0), begin[:6].ravel(), method="DOP853", rtol=1e-12, atol=1e-12,
                              args=(begin[6],))  # fmt: skip
            errors[order, dt] = np.abs(run.history(0)[-1][:6].ravel() - found.y[:, -1]).max()
    assert errors[2, 0.01] / errors[2, 0.005] == pytest.approx(4, rel=0.2)
    assert errors[4, 0.01] / errors[4, 0.005] == pytest.approx(16, rel=0.3)


def test_a_plummer_sphere_is_in_virial_equilibrium_and_keeps_its_energy():
    _, _, run = run_task(system="nbody", parameters={"bodies": 128}, steps=400, frames=4)
    kinetic, potential = invariants.energies(run.model, run.named(0), run.history(0).reshape(5, -1))
    assert -2 * kinetic[0] / potential[0] == pytest.approx(1, abs=0.25)
    assert np.abs(np.diff(kinetic + potential)).max() < 1e-4 * abs(potential[0])


def test_a_lennard_jones_liquid_keeps_its_energy_better_with_a_smaller_step():
    drifts = {}
    for dt, steps in ((0.004, 250), (0.002, 500)):
        _, _, run = run_task(system="lennard_jones", parameters={"dt": dt}, steps=steps, frames=25)
        total = sum(invariants.energies(run.model, run.named(0), run.history(0).reshape(26, -1)))
        drifts[dt] = np.abs(total - total[0]).max() / 108
    assert drifts[0.002] < 2e-4
    assert drifts[0.004] / drifts[0.002] > 2


@pytest.mark.parametrize(
    ("equation", "field", "start"),
    [
        ("lorenz", lambda t, y: (10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]), (1, 1, 1)),
        ("duffing", lambda t, y: (y[1], 0.5 * np.cos(1.2 * t) - 0.3 * y[1] + y[0] - y[0] ** 3), (1, 0)),
        ("lotka_volterra", lambda t, y: (1.1 * y[0] - 0.4 * y[0] * y[1], 0.1 * y[0] * y[1] - 0.4 * y[1]), (10, 5)),
        ("sir", lambda t, y: (-0.3 * y[0] * y[1], 0.3 * y[0] * y[1] - 0.1 * y[1], 0.1 * y[1]), (0.99, 0.01, 0)),
    ],
)
def test_diffrax_and_scipy_agree(equation, field, start):
    parameters = {"equation": equation, "dt": 0.002}
    _, _, run = run_task(system="ode", parameters=parameters, steps=1000, frames=10)
    found = solve_ivp(field, (0, 2.0), start, method="DOP853", rtol=1e-12, atol=1e-12, t_eval=np.arange(1, 11) / 5)
    assert np.abs(run.states[:, 0] - found.y.T).max() < 1e-8 * np.abs(found.y).max()


def test_diffusion_alone_keeps_the_mass_and_flattens():
    parameters = {"feed": 0.0, "kill": 0.0, "width": 64, "height": 64}
    _, _, run = run_task(system="reaction_diffusion", parameters=parameters, steps=500, frames=5)
    mass = run.history(0).sum((1, 2, 3), dtype=np.float64)
    assert np.abs(mass / mass[0] - 1).max() < 1e-6


def test_a_lattice_flow_keeps_its_mass_and_slows_behind_the_cylinder():
    parameters = {"width": 96, "height": 48, "reynolds": 60}
    _, _, run = run_task(system="lattice_boltzmann", parameters=parameters, steps=1500, frames=5)
    history = run.history(0).astype(np.float64)
    assert np.abs(history.sum((1, 2, 3)) - history[0].sum()).max() < 1e-5 * 96 * 48
    speed = history[-1][[1, 5, 8]].sum(0) - history[-1][[3, 6, 7]].sum(0)
    assert speed[24, 35] < 0.3 * 0.1 < speed[4, 35]


@pytest.mark.parametrize("option", ["call", "put"])
def test_black_scholes_lies_in_the_interval(option):
    parameters = {"option": option, "strike": [80, 100, 120], "dividend": 0.02}
    _, _, run = run_task(system="option_pricing", parameters=parameters, steps=4, ensemble=128)
    from computemesh.kernels.simulation.report import option_prices

    found = option_prices(run)
    for i, strike in enumerate((80.0, 100.0, 120.0)):
        values = {**run.named(0), "strike": strike}
        exact = black_scholes.price(option, values)
        assert found["black_scholes"][i] == exact
        assert abs(found["price"][i] - exact) < 3.3 * found["standard_error"][i] < 0.1


def test_black_scholes_is_hulls_example_and_keeps_put_call_parity():
    values = {"spot": 42.0, "strike": 40.0, "rate": 0.1, "volatility": 0.2, "maturity": 0.5, "dividend": 0.0}
    call, put = black_scholes.price("call", values), black_scholes.price("put", values)
    assert (call, put) == (pytest.approx(4.76, abs=0.005), pytest.approx(0.81, abs=0.005))
    assert call - put == pytest.approx(42 - 40 * np.exp(-0.05))


def test_an_interval_covers_as_often_as_it_says():
    parameters = {"paths": 256}
    _, _, run = run_task(system="option_pricing", parameters=parameters, steps=1, ensemble=400)
    pairs = 128
    sums, named = run.states[0], run.named(0)
    scale = named["spot"] * np.exp(-named["rate"])
    mean = sums[:, 0] / pairs
    error = scale * np.sqrt((sums[:, 1] / pairs - mean**2) / (pairs - 1))
    covered = np.abs(scale * mean - black_scholes.price("call", named)) < 1.96 * error
    assert 0.91 < covered.mean() < 0.98


# --- units -----------------------------------------------------------------------------------------------------


@every_system
def test_a_member_alone_is_the_member_in_its_batch(system):
    spec = job(system, SMALL[system])
    outcome, layout = TASK.execute(spec, Context()), TASK.layout(spec)
    for index in {0, layout.count // 2, layout.count - 1}:
        (claim,) = claims_of(spec, outcome, [index])
        lanes = simulation.Lanes(read_job(spec))
        with simulation_precise():
            start, state = simulation.opened(read_job(spec), claim, lanes)
            alone = lanes.run(start[None], [index % layout.units], [layout.segment_of(index)])
        assert alone[0].tobytes() == state.tobytes() == claim.unit[: state.nbytes]


def simulation_precise():
    from computemesh.kernels.simulation.engine import precise

    return precise()


@every_system
def test_honest_units_are_accepted_spoilt_ones_are_not(system):
    spec = job(system, SMALL[system])
    layout = TASK.layout(spec)
    units = {(layout.segments // 2, 0), (layout.segments - 1, layout.units - 1)}
    with forged(spoilt(units)):
        outcome = TASK.execute(spec, Context())
    bad = {segment * layout.units + member for segment, member in units}
    some = sorted({*bad, 0, 1 % layout.count, layout.count - 2} - {-1})
    verdicts = TASK.expected_digests(spec, claims_of(spec, outcome, some))
    for index, digest in zip(some, verdicts, strict=True):
        assert digest == (None if index in bad else outcome.digests[32 * index : 32 * index + 32])


@every_system
def test_a_lower_precision_is_caught_in_every_unit(system):
    spec = job(system, SMALL[system])
    with forged(downgraded):
        outcome = TASK.execute(spec, Context())
    claims, held = claims_of(spec, outcome, range(TASK.layout(spec).count)), read_job(spec)
    # bfloat16 makes the flow blow up, and what follows from a state that is not finite is true again
    states = [np.frombuffer(claim.unit[: held.state_bytes], held.model.dtype) for claim in claims]
    finite = [claim for claim, state in zip(claims, states, strict=True) if np.isfinite(state).all()]
    assert len(finite) >= len(claims) / 10
    assert set(TASK.expected_digests(spec, finite)) == {None}


def test_a_start_that_was_not_committed_is_refused():
    spec = job("ode", SMALL["ode"])
    outcome = TASK.execute(spec, Context())
    units = TASK.layout(spec).units
    (claim,) = claims_of(spec, outcome, [units + 1])
    assert TASK.check(spec, claim.index, claim.unit, claim.previous_root) == outcome.digests[32 * claim.index :][:32]
    size = read_job(spec).state_bytes
    (other,) = claims_of(spec, outcome, [units])  # a true unit, of another member
    for unit in (
        other.unit, claim.unit[:size] + other.unit[size:], claim.unit[:-1], claim.unit + b"\0", b"",
        claim.unit[:size], claim.unit[: 2 * size] + bytes(len(claim.unit) - 2 * size),
    ):  # fmt: skip
        assert TASK.check(spec, claim.index, unit, claim.previous_root) is None
    assert TASK.check(spec, claim.index, claim.unit, bytes(32)) is None
    assert TASK.check(spec, claim.index, claim.unit, claim.previous_root) is not None


def test_another_device_class_is_judged_by_reach_and_never_refused():
    found = other_class(1)
    assert found["refused"] == 0
    assert any(share < 1 for share in found["equal_bytes"].values()), "the other class computes the same bytes"
    assert max(found["largest_allowance_used"].values()) < 0.5


def test_the_output_shows_committed_states():
    spec = job("nbody", SMALL["nbody"])
    outcome, shape = TASK.execute(spec, Context()), TASK.layout(spec)
    digests = TASK.output_digests(spec, outcome.output)
    assert len(outcome.output) == TASK.output_bytes(spec)
    assert all(outcome.digests[32 * i : 32 * i + 32] == digest for i, digest in digests.items())
    assert max(digests) == shape.count - 1
    with pytest.raises(InvalidProof, match="bytes, not"):
        TASK.output_digests(spec, outcome.output[1:])


@pytest.mark.parametrize(
    ("system", "parameters", "spoil", "text"),
    [
        ("nbody", {}, lambda s: s.reshape(7, -1)[3].__iadd__(0.01), "momentum"),
        ("nbody", {}, lambda s: s.reshape(7, -1)[6].__imul__(1.01), "mass"),
        ("lennard_jones", {}, lambda s: s.reshape(6, -1)[4].__iadd__(0.01), "momentum"),
        ("lattice_boltzmann", {}, lambda s: s.__iadd__(0.01), "mass"),
        ("ode", {"equation": "sir"}, lambda s: s.__imul__(1.01), "S \\+ I \\+ R"),
        ("option_pricing", {}, lambda s: s[1:2].__imul__(0.0), "squares"),
    ],
)
def test_an_output_that_breaks_a_conservation_law_is_refused_whole(system, parameters, spoil, text):
    small = SMALL[system]
    small = {**small, "parameters": {**small.get("parameters", {}), **parameters}}
    spec = job(system, small)
    outcome, layout = TASK.execute(spec, Context()), read_job(spec)
    states = np.frombuffer(outcome.output, layout.model.dtype).copy().reshape(-1, layout.width)
    spoil(states[-1])
    with pytest.raises(InvalidProof, match=text):
        TASK.output_digests(spec, states.tobytes())


def test_a_run_that_blows_up_is_honest_work():
    parameters = {"equation": "van_der_pol", "mu": 20, "dt": 0.1, "x0": 1000, "v0": 1000}
    payload = {"parameters": parameters, "steps": 200, "frames": 20}
    spec = job("ode", payload)
    outcome = TASK.execute(spec, Context())
    assert not np.isfinite(np.frombuffer(outcome.output)).all()
    assert accepted(spec, outcome, os.urandom(32))
    TASK.output_digests(spec, outcome.output)


@every_system
def test_how_a_task_is_split_does_not_change_its_members(system):
    small = SMALL[system]
    whole = run_task(system=system, **{**small, "jobs": 1})[2]
    split = run_task(system=system, **{**small, "jobs": 2})[2]
    assert np.allclose(whole.states, split.states, rtol=1e-4, atol=1e-5)
    assert (whole.values == split.values).all()


def test_a_repeated_shape_never_compiles_again():
    from computemesh.kernels.simulation import engine

    payload = {"parameters": {"equation": "brusselator", "spread": 0.1}, "frames": 10, "ensemble": 16}
    TASK.execute(job("ode", {**payload, "steps": 100}), Context())
    before = len(engine.traces)
    other = {"equation": "brusselator", "spread": 0.1, "b": 2.5}
    spec = job("ode", {**payload, "steps": 730, "parameters": other}, seed=4)
    assert accepted(spec, TASK.execute(spec, Context()), bytes(32))
    assert len(engine.traces) == before


def test_the_process_keeps_its_own_precision():
    import jax.numpy as jnp

    TASK.execute(job("ode", {"steps": 10}), Context())
    assert jnp.ones(1).dtype == jnp.float32


# --- payloads, params, results -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "field", "text"),
    [
        ({"system": "nbdy"}, "system", "system must be one of nbody, .*, not 'nbdy'"),
        ({"steps": 0}, "steps", "steps must be a whole number from 1 to 100,000,000, not 0"),
        ({"steps": 10, "frames": 11}, "frames", "frames must be at most steps, 10, not 11"),
        ({"parameters": 3}, "parameters", "parameters must be an object"),
        ({"parameters": {"dt": -1}}, "parameters.dt", "dt must be a number, a list .* from 1e-06 to 0.1 .*, not -1"),
        ({"parameters": {"dt": "0.1"}}, "parameters.dt", "not '0.1'"),
        ({"parameters": {"dt": True}}, "parameters.dt", "not True"),
        ({"parameters": {"dt": float("nan")}}, "parameters.dt", "not nan"),
        ({"parameters": {"rho": []}}, "parameters.rho", "rho must list 1 to 256 values, not 0"),
        ({"parameters": {"rho": [28, 999]}}, "parameters.rho[1]", "from 0 to 300 .*, not 999"),
        ({"parameters": {"rho": {"from": 1, "to": 2}}}, "parameters.rho", "not .'from', 'to'."),
        ({"parameters": {"rho": {"from": 1, "to": 2, "count": 1}}}, "parameters.rho.count", "from 2 to 65,535, not 1"),
        ({"parameters": {"rho": {"from": -1, "to": 2, "count": 3}}}, "parameters.rho.from", "not -1"),
        ({"parameters": {"equation": "lorentz"}}, "parameters.equation", "one of lorenz, rossler, .*, not 'lorentz'"),
        ({"parameters": {"mu": 1}}, "parameters.mu", "'mu' is not a parameter of ode lorenz; they are dt, sigma"),
        ({"system": "nbody", "parameters": {"bodies": [2, 3]}}, "parameters.bodies", "cannot be swept"),
        ({"system": "nbody", "parameters": {"bodies": 2000}}, "parameters.bodies", "from 2 to 1,024 .*, not 2000"),
        ({"system": "lennard_jones", "parameters": {"cutoff": 4}}, "parameters.cutoff", "half the box's edge, 2.519"),
        ({"system": "lattice_boltzmann", "parameters": {"reynolds": 900}}, "parameters.reynolds", "at most 288"),
        ({"system": "option_pricing", "frames": 2}, "frames", "frames must be 1 in option_pricing"),
        ({"ensemble": 10**6, "parameters": {"rho": [1, 2]}}, "ensemble", "2,000,000 members; a task has at most"),
        ({"ensemble": 10**6, "frames": 100}, "frames", "a result has at most"),
        ({"system": "lennard_jones", "steps": 10**8, "ensemble": 10**4}, "steps", "a task may ask for 1e\\+17"),
        ({"ensemble": 2}, "ensemble", "ensemble 2 needs parameters.spread above 0: .* all members would be the same"),
        ({"system": "reaction_diffusion", "steps": 10**7}, "steps", "a job holds 16,384 states"),
    ],
)  # fmt: skip
def test_a_bad_payload_is_refused_with_field_value_and_limit(payload, field, text):
    with pytest.raises(InvalidArgument, match=text) as refused:
        TASK.parse({"system": "ode", "steps": 1000, **payload})
    assert refused.value.violations[0][0] == f"payload.{field}"


def test_a_sweep_is_the_product_with_the_last_parameter_fastest():
    parameters = {"equation": "lorenz", "sigma": [1, 2], "rho": {"from": 10, "to": 20, "count": 3}, "spread": 0.1}
    _, _, run = run_task(system="ode", parameters=parameters, steps=10, ensemble=2)
    points = np.stack([run.column("sigma"), run.column("rho")], 1)[::2].tolist()
    assert points == [[1, 10], [1, 15], [1, 20], [2, 10], [2, 15], [2, 20]]


def test_every_model_runs_with_its_defaults_and_reads_its_own_params():
    assert len(BY_NUMBER) == len(MODELS)
    for model in MODELS:
        chooses = simulation_field(model)
        params = TASK.parse({"system": model.system, "steps": 100, "parameters": chooses})
        spec = TASK.split(params, TASK_ID)[0]
        assert read_job(spec).model == model
        assert read_job(spec).pack() == spec.params


def simulation_field(model):
    from computemesh.kernels.simulation.catalog import VARIANT_FIELD

    return {VARIANT_FIELD[model.system]: model.variant} if model.variant else {}


def test_hostile_params_raise_only_invalid_argument():
    good = TASK.split(TASK.parse({"system": "ode", "steps": 100}), TASK_ID)[0].params
    rng = np.random.default_rng(1)
    for _ in range(2000):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = rng.integers(256)
        try:
            layout = TASK.layout(JobSpec(TASK_ID, 0, bytes(bad)))
        except InvalidArgument:
            continue
        assert layout.count * 24 <= 2**27
    for cut in range(len(good)):
        with pytest.raises(InvalidArgument):
            TASK.layout(JobSpec(TASK_ID, 0, good[:cut]))
    head = list(HEAD.unpack_from(good))
    head[3] = head[4] = 2**32 - 1  # steps and frames of a job nobody could hold
    with pytest.raises(InvalidArgument):
        TASK.layout(JobSpec(TASK_ID, 0, HEAD.pack(*head) + good[HEAD.size :]))


@every_system
def test_a_task_leaves_arrays_a_summary_a_plot_and_an_animation(system):
    from PIL import Image

    small = {**SMALL[system], "system": system}
    params, outcomes, _ = run_task(**small)
    results = [JobResult(bytes(32), outcome.output) for outcome in outcomes]
    files = {artifact.name: artifact for artifact in TASK.assemble(params, results)}
    again = {artifact.name: artifact.data for artifact in TASK.assemble(params, results)}
    assert again == {name: artifact.data for name, artifact in files.items()}
    arrays = np.load(io.BytesIO(files["results.npz"].data))
    assert arrays["states"].shape[0] == arrays["parameters"].shape[0] == small["ensemble"] if "ensemble" in small else 1
    assert json.loads(files["summary.json"].data)["finite"] is True
    assert Image.open(io.BytesIO(files["plot.png"].data)).size == (1500, 696)
    if system != "option_pricing":
        animated = Image.open(io.BytesIO(files["animation.webp"].data))
        assert animated.n_frames == small["frames"] + 1
    preview = TASK.preview(params, {len(outcomes) - 1: outcomes[-1].output})
    assert preview.data.startswith(b"\x89PNG")
    assert TASK.preview(params, {}) is None
