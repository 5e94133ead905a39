"""Programs that attack: each ends in an error with a name, and the next honest job is done at once."""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from computemesh import workloads
from computemesh.sandbox.arrays import pack_program, unpack_program
from computemesh.sandbox.process import JobFailed
from computemesh.workloads import Context
from tests.workloads import programs

TASK = workloads.get("program")
NEXT_JOB_S = 10.0
HOSTILE = {
    "io_callback": ("PROGRAM_REFUSED", "custom call 'xla_ffi_python_cpu_callback'"),
    "ordered_io_callback": ("PROGRAM_REFUSED", "custom call 'xla_ffi_python_cpu_callback'"),
    "pure_callback": ("PROGRAM_REFUSED", "custom call 'xla_ffi_python_cpu_callback'"),
    "ffi_call": ("PROGRAM_REFUSED", "custom call 'system_shell'"),
    "outfeed": ("PROGRAM_REFUSED", "stablehlo.outfeed"),
    "two_devices": ("PROGRAM_REFUSED", "for 2 devices; it must be for one"),
    "endless_loop": ("PROGRAM_TIMEOUT", "was still running after 4 s"),
    "vast_broadcast": ("PROGRAM_MEMORY", r"takes 4,000,000,000,\d+ bytes of memory; the task allows 1,073,741,824"),
    "vast_output": ("PROGRAM_OUTPUT", r"declares outputs float32\[4\]; the program's are float32\[268435456,4\]"),
    "lying_signature": ("PROGRAM_REFUSED", r"returns 1 array\(s\) of other shapes than its export says"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return programs.FolderFiles(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def honest():
    return programs.triple()


def job(store, program: bytes, **changes):
    inputs = store.put(programs.npz(np.arange(4, dtype=np.float32)))
    payload = {"program": store.put(program), "inputs": inputs, "outputs": ["float32[4]"], "tolerance": 1e-5,
               "timeout_s": 30, **changes}  # fmt: skip
    return replace(TASK.split(TASK.parse(payload), bytes(32))[0], files=store)


def the_next_honest_job_is_done(store, honest) -> None:
    begin = time.monotonic()
    output = TASK.execute(job(store, honest), Context()).output
    assert time.monotonic() - begin < NEXT_JOB_S
    assert np.frombuffer(output, np.float32).tolist() == [1, 4, 7, 10]


def failure(store, program: bytes, **changes) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        TASK.execute(job(store, program, **changes), Context())
    print(f"{caught.value.reason}: {caught.value}")
    return caught.value


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_named_and_the_next_job_is_done(store, honest, name):
    reason, text = HOSTILE[name]
    error = failure(store, getattr(programs, name)(), timeout_s=4 if name == "endless_loop" else 30)
    assert error.reason.startswith(reason)
    assert error.retry_after_ms is None, "whoever tries it next fails too"
    assert re.search(text, str(error))
    the_next_honest_job_is_done(store, honest)


def test_corrupt_truncated_and_foreign_artifacts_are_told_apart(store, honest):
    flipped = bytearray(honest)
    flipped[300] ^= 1
    assert "the program is corrupt" in str(failure(store, bytes(flipped)))
    assert "the program is truncated: it has 952 of" in str(failure(store, honest[:1000]))
    assert "are not a program" in str(failure(store, b"\x80\x04N."))
    the_next_honest_job_is_done(store, honest)


def test_damage_that_the_container_vouches_for_ends_in_a_name_too(store, honest):
    rng, body = random.Random(4), unpack_program(honest)
    for number in range(4):
        damaged = bytearray(body)
        for _ in range(5):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        cut = bytes(damaged[: len(damaged) // 2]) if number == 3 else bytes(damaged)
        assert failure(store, pack_program(cut)).reason in {
            "PROGRAM_UNREADABLE", "PROGRAM_CRASHED", "PROGRAM_REFUSED", "PROGRAM_OUTPUT"
        }  # fmt: skip
    the_next_honest_job_is_done(store, honest)


def test_a_program_has_no_more_memory_than_the_task_allows(store):
    import jax.numpy as jnp

    large = programs.exported(lambda x: jnp.cumsum(jnp.outer(jnp.arange(2.0**22), x), 0)[-1], "float32[4]")
    error = failure(store, large, memory_bytes=2**20)
    assert error.reason == "PROGRAM_MEMORY"
    assert "the task allows 1,048,576" in str(error)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (b"PK not a zip", "not a readable .npz"),
        (programs.npz(np.zeros(5, np.float32)), r"shape \(5,\); the program takes float32\[4\]"),
        (programs.npz(np.zeros(4)), r"dtype float64; the program takes float32\[4\]"),
        (programs.npz(arg1=np.zeros(4, np.float32)), "missing .'arg0.npy'"),
        (programs.npz(np.array([{}, 1, 2, 3], object)), "dtype object"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(store, honest, inputs, text):
    with pytest.raises(JobFailed, match=text) as caught:
        TASK.execute(job(store, honest, inputs=store.put(inputs)), Context())
    assert caught.value.reason == "PROGRAM_INPUTS"


def test_an_archive_that_unpacks_to_gigabytes_is_read_no_further_than_needed(store, honest):
    """The header says how much is there, so nothing is unpacked."""
    import io
    import zipfile

    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arg0.npy", "w", force_zip64=True) as out,
    ):
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (2**29,)})
        for _ in range(128):
            out.write(bytes(2**20))
    with pytest.raises(JobFailed, match=r"shape \(536870912,\)"):
        TASK.execute(job(store, honest, inputs=store.put(file.getvalue())), Context())
