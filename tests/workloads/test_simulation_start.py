"""Simulations that start from a file: what a run does with one, and files that nobody should trust."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemesh.kernels.simulation.catalog import MODELS
from computemesh.trust.errors import InvalidArgument, NotFound
from computemesh.workloads import Context, JobSpec, get
from computemesh.workloads.contract import MAX_STATE_BYTES, JobResult
from computemesh.workloads.simulation import Lanes, read_job
from tests.workloads.test_simulation import claims_of

TASK = get("simulation")
SMALL = {
    "nbody": {"system": "nbody", "steps": 12, "frames": 3, "parameters": {"bodies": 5}},
    "lennard_jones": {"system": "lennard_jones", "steps": 8, "frames": 2, "parameters": {"cells": 3}},
    "reaction_diffusion": {"system": "reaction_diffusion", "steps": 12, "frames": 3,
                           "parameters": {"width": 32, "height": 16}},
}  # fmt: skip
NAMES = {
    "nbody": ("position", "velocity", "mass"), "lennard_jones": ("position", "velocity"),
    "reaction_diffusion": ("u", "v"),
}  # fmt: skip


class OneFile:
    """The only artifact there is."""

    def __init__(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        self._path, self.digest = path, sha256(data).digest()

    def artifact(self, digest: bytes) -> Path:
        if digest != self.digest:
            raise NotFound("another artifact")
        return self._path


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def drawn(system: str) -> dict[str, np.ndarray]:
    """The arrays of the state that a task of the system starts from by itself."""
    (spec,) = TASK.split(TASK.parse(SMALL[system]), bytes(32))[:]
    job = read_job(spec)
    state = Lanes(job).start(0).reshape(job.model.fields, -1)
    if system == "reaction_diffusion":
        return {"u": state[0].reshape(16, 32), "v": state[1].reshape(16, 32)}
    arrays = {"position": state[:3].T, "velocity": state[3:6].T}
    return arrays | ({"mass": state[6]} if system == "nbody" else {})


def started(system: str, files: OneFile, **changes: Any) -> JobSpec:
    params = TASK.parse({**SMALL[system], "start": files.digest.hex(), **changes})
    (spec,) = TASK.split(params, bytes(32))[:]
    return replace(spec, files=files)


@pytest.mark.parametrize("system", SMALL)
def test_a_run_from_a_file_with_the_usual_start_is_the_usual_run(system: str, tmp_path: Path) -> None:
    (usual,) = TASK.split(TASK.parse(SMALL[system]), bytes(32))[:]
    files = OneFile(tmp_path / "start.npz", npz(**drawn(system)))
    spec = started(system, files)
    outcome = TASK.execute(spec, Context())
    assert outcome.digests == TASK.execute(usual, Context()).digests
    assert TASK.job_inputs is not None
    assert (TASK.job_inputs(spec), TASK.job_inputs(usual)) == ([files.digest], [])
    claims = claims_of(spec, outcome, range(TASK.layout(spec).count))
    assert all(TASK.expected_digests(spec, claims))
    assert TASK.output_digests is not None
    assert TASK.output_digests(spec, outcome.output)
    params = TASK.parse({**SMALL[system], "start": files.digest.hex()})
    names = {file.name for file in TASK.assemble(params, [JobResult(bytes(32), outcome.output)])}
    assert {"results.npz", "plot.png", "animation.webp"} <= names


def test_the_members_of_a_sweep_start_from_the_file_and_part(tmp_path: Path) -> None:
    files = OneFile(tmp_path / "start.npz", npz(**drawn("reaction_diffusion")))
    spec = started("reaction_diffusion", files, jobs=1,
                   parameters={"width": 32, "height": 16, "feed": [0.03, 0.04]})  # fmt: skip
    lanes = Lanes(read_job(spec), files)
    assert (lanes.start(0) == lanes.start(1)).all()
    states = np.frombuffer(TASK.execute(spec, Context()).output, "<f4").reshape(3, 2, -1)
    assert (states[:, 0] != states[:, 1]).any()


def test_a_unit_computed_from_another_start_is_found(tmp_path: Path) -> None:
    arrays = drawn("nbody")
    spec = started("nbody", OneFile(tmp_path / "start.npz", npz(**arrays)))
    moved = {**arrays, "position": arrays["position"] + 0.5}
    other = started("nbody", OneFile(tmp_path / "other.npz", npz(**moved)))
    claims = claims_of(other, TASK.execute(other, Context()), [0])
    assert TASK.expected_digests(spec, claims) == [None]


def hostile(name: str) -> bytes:
    """A spoilt file for an nbody task of five bodies."""
    arrays: dict[str, Any] = drawn("nbody")
    if name == "not a zip":
        return b"PK nonsense"
    if name == "lies about its size":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive, archive.open("position.npy", "w") as member:
            header = {"descr": "<f8", "fortran_order": False, "shape": (5, 10**9)}
            np.lib.format.write_array_header_1_0(member, header)
        return file.getvalue()
    changes: dict[str, dict[str, Any]] = {
        "no mass": {"mass": None}, "a pickle": {"mass": np.array([{}] * 5, object)},
        "whole numbers": {"mass": np.ones(5, np.int64)}, "long doubles": {"mass": np.ones(5, np.longdouble)},
        "six bodies": {"position": np.ones((6, 3))}, "flat": {"velocity": np.ones(15)},
        "NaN": {"velocity": np.full((5, 3), np.nan)}, "infinite": {"position": np.full((5, 3), np.inf)},
        "no weight": {"mass": np.array([1.0, 1, 0, 1, 1])},
    }  # fmt: skip
    return npz(**{key: value for key, value in {**arrays, **changes[name]}.items() if value is not None})


@pytest.mark.parametrize(("name", "why"), [
    ("not a zip", "not a readable .npz"), ("lies about its size", "40,000,000,000 bytes; at most 120 are read"),
    ("no mass", "no array 'mass'; it must have position and velocity and mass"), ("a pickle", "dtype object"),
    ("whole numbers", "dtype int64; floating-point"), ("long doubles", "floating-point numbers of at most 8 bytes"),
    ("six bodies", "144 bytes; at most 120"), ("flat", r"shape \[15\]; parameters bodies 5, order 2 mean \[5, 3\]"),
    ("NaN", r"'velocity' holds NaN, .* first at \[0, 0\]"), ("infinite", "'position' holds NaN, infinity"),
    ("no weight", "'mass' holds 0; a mass is above 0"),
])  # fmt: skip
def test_a_bad_file_is_refused_with_array_value_and_limit(tmp_path: Path, name: str, why: str) -> None:
    spec = started("nbody", OneFile(tmp_path / "start.npz", hostile(name)))
    with pytest.raises(InvalidArgument, match=why) as refused:
        TASK.execute(spec, Context())
    assert [field for field, _ in refused.value.violations] == ["start"]


def test_a_number_that_the_systems_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    arrays = drawn("reaction_diffusion")
    u = arrays["u"].astype(np.float64)
    u[3, 4] = 1e300
    spec = started("reaction_diffusion", OneFile(tmp_path / "start.npz", npz(u=u, v=arrays["v"])))
    with pytest.raises(InvalidArgument, match=r"what <f4 cannot hold, first at \[3, 4\]"):
        TASK.execute(spec, Context())


@pytest.mark.parametrize(("payload", "field", "why"), [
    ({"start": "7" * 63}, "start", "SHA-256"),
    ({"start": "7" * 64, "ensemble": 2}, "ensemble", "ensemble must be 1 with start, not 2"),
    ({"start": "7" * 64, "parameters": {"start": "figure_eight"}}, "start", "absent in nbody figure_eight"),
    ({"start": "7" * 64, "system": "ode"}, "start", "absent in ode lorenz"),
    ({"start": "7" * 64, "system": "lattice_boltzmann"}, "start", "absent in lattice_boltzmann"),
])  # fmt: skip
def test_a_start_where_none_is_taken_is_refused(payload: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        TASK.parse({"system": "nbody", "steps": 10, **payload})
    assert f"payload.{field}" in [name for name, _ in refused.value.violations]


def test_no_state_is_larger_than_an_auditor_can_read() -> None:
    for model in MODELS:
        shape = {extent.name: extent.high for extent in model.extents}
        assert model.width(shape) * model.itemsize <= MAX_STATE_BYTES
