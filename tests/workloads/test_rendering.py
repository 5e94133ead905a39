"""The rendering type: what it refuses, how it splits, what it accepts and what it catches, what it leaves."""

import io
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from computemesh.trust.audit import JobTree, fold_opening, sample
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads import Claim, Context, JobSpec, bind, get, rendering, worker_seed
from computemesh.workloads.contract import JobResult
from computemesh.workloads.rendering_job import UNIT_BYTES, read_job
from tests.workloads.scenes import glb, triangle

TASK = get("rendering")
TASK_ID = b"\x07" * 32
SMALL = {"scene": "cornell", "width": 64, "height": 48, "samples_per_pixel": 4, "seed": "s"}
CAMERA_RULE = "an object of position, target, up"


class Folder:
    """`Files` over one folder."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, data):
        digest = sha256(data).digest()
        (self.path / digest.hex()).write_bytes(data)
        return digest

    def artifact(self, digest):
        return self.path / digest.hex()


def jobs(payload, files=None):
    return [replace(spec, files=files) for spec in TASK.split(TASK.parse(payload), TASK_ID)]


@pytest.fixture(scope="module")
def done():
    (spec,) = jobs(SMALL)
    return spec, TASK.execute(spec, Context())


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"scene": "teapot"}, "scene", "a built-in scene (cornell, spheres) or a .glb artifact's SHA-256"),
        ({"scene": "AB" * 32}, "scene", "64 hexadecimal digits"),
        ({"scene": 5}, "scene", "not 5"),
        ({"width": 15}, "width", "a whole number from 16 to 8,192, not 15"),
        ({"height": 10**9}, "height", "a whole number from 16 to 8,192, not 1000000000"),
        ({"samples_per_pixel": 0}, "samples_per_pixel", "from 1 to 65,536, not 0"),
        ({"frames": 2.5}, "frames", "from 1 to 1,000, not 2.5"),
        ({"camera": {"position": [0, 0]}}, "camera", CAMERA_RULE),
        ({"camera": {"position": [0, 0, float("nan")]}}, "camera", CAMERA_RULE),
        ({"camera": {"fov_degrees": 180}}, "camera", CAMERA_RULE),
        ({"camera": {"zoom": 2}}, "camera", CAMERA_RULE),
        ({"camera": {"position": [1, 2, 3], "target": [1, 2, 3]}}, "camera", "they must differ"),
        ({"camera": {"up": [0, 0, 0]}}, "camera", "up must not be"),
        ({"environment": [-1, 0, 0]}, "environment", "each 0 to 10,000"),
        ({"orbit_degrees": float("inf")}, "orbit_degrees", "from -3,600 to 3,600"),
        ({"width": 8192, "height": 8192}, "width", "is 67,108,864; a task has at most 33,554,432 pixels"),
        ({"width": 512, "height": 512, "frames": 1000}, "frames", "is 262,144,000; a task has at most"),
        ({"width": 8192, "height": 4096, "samples_per_pixel": 65_536}, "samples_per_pixel", "may ask for 1e+17"),
    ],
)
def test_bad_payloads_are_refused_with_field_value_and_limit(changes, field, text):
    with pytest.raises(InvalidArgument) as refused:
        TASK.parse({**SMALL, **changes})
    assert text in str(refused.value)
    assert [name for name, _ in refused.value.violations] == [f"payload.{field}"]


@pytest.mark.parametrize(
    ("width", "height", "frames"), [(64, 48, 1), (17, 33, 5), (512, 512, 1), (500, 300, 7), (8192, 4096, 1)]
)
def test_jobs_cover_every_tile_once_and_are_large_enough_to_check_cheaply(width, height, frames):
    params = TASK.parse({**SMALL, "width": width, "height": height, "frames": frames})
    read = [read_job(spec) for spec in TASK.split(params, TASK_ID)]
    total = -(-width // 16) * -(-height // 16) * frames
    assert [job.first for job in read] == [0, *np.cumsum([job.count for job in read])[:-1]]
    assert sum(job.count for job in read) == total
    assert all(min(total, 512) <= job.count <= 1024 for job in read)


def test_a_camera_travels_through_the_params():
    camera = {"position": [1, 2, 3], "up": [0, 0, 1], "aperture": 0.25}
    (spec,) = jobs({**SMALL, "camera": camera, "environment": [1, 2, 3], "indirect_limit": 0})
    job = read_job(spec)
    assert job.given == {"position": (1, 2, 3), "up": (0, 0, 1), "aperture": 0.25, "environment": (1, 2, 3)}
    assert (job.width, job.height, job.samples, job.frames, job.indirect_limit) == (64, 48, 4, 1, 0)


def test_every_other_params_byte_is_read_or_refused():
    (spec,) = jobs(SMALL)
    for at in range(len(spec.params)):
        for value in (0, 127, 255):
            params = spec.params[:at] + bytes([value]) + spec.params[at + 1 :]
            with suppress(InvalidArgument):
                TASK.layout(JobSpec(TASK_ID, 0, params))


def test_tiles_checked_one_by_one_are_the_workers_bytes(done):
    spec, outcome = done
    made = [piece for indices in ([3], [11, 0, 6]) for piece in rendering._render(spec, sorted(indices), Context())]
    assert np.concatenate(made).astype("<f4").tobytes() == b"".join(outcome.units(i) for i in (3, 0, 6, 11))
    digests = TASK.expected_digests(spec, [Claim(i, outcome.units(i)) for i in (11, 3, 3)])
    assert digests == [outcome.digests[32 * i : 32 * i + 32] for i in (11, 3, 3)]


def test_the_output_shows_the_committed_digests(done):
    spec, outcome = done
    assert len(outcome.output) == TASK.output_bytes(spec) == 12 * UNIT_BYTES
    assert b"".join(TASK.output_digests(spec, outcome.output).values()) == outcome.digests
    with pytest.raises(InvalidProof, match="output of job 0 has 1 bytes"):
        TASK.output_digests(spec, b"x")


def spoil(unit, how):
    tile = np.frombuffer(unit, "<f4").copy()
    if how == "brighter":
        tile *= np.float32(1.001)
    elif how == "flat":
        tile.reshape(-1, 3)[:] = tile.reshape(-1, 3).mean(axis=0)
    elif how == "nan":
        tile[5] = np.nan
    elif how == "infinite":
        tile[5] = np.inf
    elif how == "negative":
        tile[5] = -1e-3
    elif how == "26 pixels":
        tile.reshape(-1, 3)[:26] += np.float32(0.01)
    elif how == "float16":
        tile = tile.astype(np.float16).astype("<f4")
    elif how == "another tile":
        tile = np.roll(tile, 3)
    return tile.tobytes()


@pytest.mark.parametrize(
    "how", ["brighter", "flat", "nan", "infinite", "negative", "26 pixels", "float16", "another tile"]
)
def test_a_corrupted_tile_is_refused_and_its_neighbours_are_not(done, how):
    spec, outcome = done
    claims = [Claim(5, outcome.units(5)), Claim(6, spoil(outcome.units(6), how)), Claim(7, outcome.units(7)[:-1])]
    good, bad, short = TASK.expected_digests(spec, claims)
    assert good == outcome.digests[5 * 32 : 6 * 32]
    assert bad is None
    assert short is None


def test_rounding_in_the_last_place_and_a_path_gone_another_way_are_accepted(done):
    _, outcome = done
    honest = outcome.units(6)
    tile = np.frombuffer(honest, "<f4") * np.float32(1 + 2e-6)
    tile.reshape(-1, 3)[:5] *= np.float32(1.2)
    assert rendering.agrees(tile.tobytes(), honest)


def test_fewer_samples_than_paid_for_are_refused(done):
    spec, _ = done
    (cheap,) = jobs({**SMALL, "samples_per_pixel": 3})
    lazy = TASK.execute(cheap, Context())
    assert TASK.expected_digests(spec, [Claim(i, lazy.units(i)) for i in range(12)]) == [None] * 12


def test_an_index_outside_the_job_is_no_proof(done):
    with pytest.raises(InvalidProof):
        TASK.check(done[0], 12, done[1].units(0), None)


def test_one_wrong_tile_in_the_sample_fails_the_audit(done):
    spec, outcome = done
    layout, units = TASK.layout(spec), [outcome.units(i) for i in range(12)]
    asked = sample(bytes(32), bytes(32), layout.count, TASK.sample_size)
    for spoilt in (None, asked[3]):
        handed = [spoil(u, "float16") if i == spoilt else u for i, u in enumerate(units)]
        from blake3 import blake3

        tree = JobTree(layout, b"".join(blake3(u).digest() for u in handed))
        openings = [tree.open(i, handed[i]) for i in asked]
        found = TASK.expected_digests(spec, [Claim(o.index, o.unit) for o in openings])
        accepted = all(d is not None and fold_opening(layout, o, d) == tree.result_hash
                       for o, d in zip(openings, found, strict=True))  # fmt: skip
        assert accepted == (spoilt is None)


def test_without_a_seed_the_noise_belongs_to_the_task_whoever_works_on_it():
    (spec,) = jobs({**SMALL, "width": 16, "height": 16, "seed": None})
    other = replace(spec, task_id=bytes(32))
    elsewhere = bind(spec, worker_seed(bytes(32), "cpc1other"))
    digests, again, differs = (TASK.execute(one, Context()).digests for one in (spec, elsewhere, other))
    assert digests == again
    assert digests != differs


def test_progress_is_told_and_stops_the_work():
    (spec,) = jobs(SMALL)
    told = []

    def progress(fraction):
        told.append(fraction)
        if fraction > 0.4:
            raise TimeoutError("lease lost")

    with pytest.raises(TimeoutError):
        TASK.execute(spec, Context(progress=progress))
    assert 0 < told[0] <= told[-1] <= 1


def test_a_picture_an_animation_and_a_preview_are_files_others_read(done, tmp_path):
    import OpenEXR

    _, outcome = done
    params = TASK.parse(SMALL)
    artifacts = {a.name: a for a in TASK.assemble(params, [JobResult(bytes(32), outcome.output)])}
    assert Image.open(io.BytesIO(artifacts["picture.png"].data)).size == (64, 48)
    (tmp_path / "p.exr").write_bytes(artifacts["picture.exr"].data)
    stored = OpenEXR.File(str(tmp_path / "p.exr")).channels()["RGB"].pixels
    np.testing.assert_array_equal(stored[16:32, :16], np.frombuffer(outcome.units(4), "<f4").reshape(16, 16, 3))
    with pytest.raises(InvalidProof, match="output of job 0 has 7 bytes"):
        TASK.assemble(params, [JobResult(bytes(32), outcome.output[:7])])
    assert TASK.preview(params, {}) is None
    assert TASK.preview(params, {0: outcome.output}).data == artifacts["picture.png"].data


def test_a_preview_is_grey_where_nothing_is_yet():
    params = TASK.parse({**SMALL, "width": 512, "height": 512})
    output = np.ones((512, 16, 16, 3), "<f4").tobytes()
    shown = np.asarray(Image.open(io.BytesIO(TASK.preview(params, {1: output}).data)))
    assert (shown[:256] != shown[-1, 0]).all()
    assert (shown[256:] == shown[-1, 0]).all()


def test_frames_turn_about_the_target():
    payload = {**SMALL, "width": 32, "height": 32, "frames": 3, "orbit_degrees": 90, "samples_per_pixel": 2}
    (spec,) = jobs(payload)
    outcome = TASK.execute(spec, Context())
    names = {a.name: a.data for a in TASK.assemble(TASK.parse(payload), [JobResult(b"", outcome.output)])}
    assert list(names) == ["picture.png", "animation.webp", "frame-0000.exr", "frame-0001.exr", "frame-0002.exr"]
    movie = Image.open(io.BytesIO(names["animation.webp"]))
    assert (movie.n_frames, movie.size) == (3, (32, 32))
    frames = np.frombuffer(outcome.output, "<f4").reshape(3, -1)
    still = {**payload, "frames": 1, "camera": {"position": [3.9 * np.sin(np.pi / 6), 0, 3.9 * np.cos(np.pi / 6)]}}
    alone = np.frombuffer(TASK.execute(jobs(still)[0], Context()).output, "<f4")
    assert frames[1].mean() == pytest.approx(alone.mean(), rel=0.15)
    assert frames[0].mean() != pytest.approx(frames[1].mean(), rel=0.01)


def test_a_scene_from_a_file_is_rendered_and_a_bad_camera_is_named(tmp_path):
    files = Folder(tmp_path)
    payload = {
        **SMALL,
        "scene": files.add(glb(*triangle())).hex(),
        "camera": {"position": [0.3, 0.3, 2], "target": [0.3, 0.3, 0]},
    }
    assert TASK.inputs(TASK.parse(payload)) == TASK.job_inputs(jobs(payload)[0]) == [bytes.fromhex(payload["scene"])]
    (spec,) = jobs(payload, files)
    outcome = TASK.execute(spec, Context())
    assert TASK.check(spec, 3, outcome.units(3), None) == outcome.digests[96:128]
    assert np.frombuffer(outcome.output, "<f4").mean() > 0.2  # lit by the sky that such files get
    with pytest.raises(InvalidArgument, match="parallel"):
        TASK.execute(jobs({**payload, "camera": {"position": [0, 5, 0], "target": [0, 0, 0]}}, files)[0], Context())


def test_a_hostile_scene_is_refused_and_the_next_job_is_done(tmp_path):
    files = Folder(tmp_path)
    camera = {"position": [0.3, 0.3, 2], "target": [0.3, 0.3, 0]}
    begin = time.process_time()
    bad = files.add(glb(*triangle(accessors__0__count=10**9)))
    with pytest.raises(InvalidArgument, match="1,000,000,000 vertices") as refused:
        TASK.execute(jobs({**SMALL, "scene": bad.hex()}, files)[0], Context())
    assert refused.value.violations[0][0] == "payload.scene"
    (spec,) = jobs({**SMALL, "scene": files.add(glb(*triangle())).hex(), "camera": camera}, files)
    outcome = TASK.execute(spec, Context())
    assert TASK.check(spec, 3, outcome.units(3), None) == outcome.digests[96:128]
    assert time.process_time() - begin < 10


@pytest.mark.long
def test_another_class_of_device_is_accepted_though_its_bits_differ():
    """XLA restricted to SSE4.2: other vector widths, no fused multiply-add."""
    code = (
        "import sys; from tests.workloads.test_rendering import *; "
        "sys.stdout.buffer.write(TASK.execute(jobs({**SMALL, 'scene': 'spheres'})[0], Context()).output)"
    )
    made = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE,
                          env={**os.environ, "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"}).stdout  # fmt: skip
    (spec,) = jobs({**SMALL, "scene": "spheres"})
    claims = [Claim(i, made[i * UNIT_BYTES : (i + 1) * UNIT_BYTES]) for i in range(12)]
    assert None not in TASK.expected_digests(spec, claims)
    assert TASK.execute(spec, Context()).output != made
