"""Functions of a worker's operator, called as a worker calls them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from computemesh import expose, workloads
from computemesh.sandbox.process import JobFailed
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.workloads import Claim, Context, function
from computemesh.workloads.contract import JobResult
from tests.workloads import programs
from worker.functions import offer

TASK = workloads.get("function")
FILE = str(Path(__file__).parent / "exposed_functions.py")
EXAMPLE = str(Path(__file__).parents[2] / "examples/functions/text_service.py")


@pytest.fixture(autouse=True)
def _exposed(monkeypatch):
    monkeypatch.setenv(function.FILES_VARIABLE, os.pathsep.join([FILE, EXAMPLE]))


def jobs(name, files=None, **payload):
    params = TASK.parse({"function_name": name, **payload})
    return params, [replace(spec, files=files) for spec in TASK.split(params, bytes(32))]


def call(name, **data):
    _, (spec,) = jobs(name, data=data)
    return json.loads(TASK.execute(spec, Context()).output)


def failure(name, timeout_s=60, **data) -> JobFailed:
    _, (spec,) = jobs(name, data=data, timeout_s=timeout_s)
    with pytest.raises(JobFailed) as caught:
        TASK.execute(spec, Context())
    print(f"{caught.value.reason}: {caught.value}")
    return caught.value


def test_a_call_gives_the_functions_answer():
    assert call("sum", values=[1, 2.5])["total"] == 3.5
    answer = call("readability", text="Nobody has to trust the seller.")
    ease = round(206.835 - 1.015 * 6 - 84.6 * 9 / 6, 2)  # no-bo-dy has to trust the sel-ler
    assert answer == {"reading_ease": ease, "sentences": 1, "syllables": 9, "words": 6}


@pytest.mark.parametrize(
    ("name", "data", "reason", "text"),
    [
        ("sum", {"values": []}, "FUNCTION_INPUT", "sum does not take this: values: List should have at least 1 item"),
        ("sum", {"values": ["a"]}, "FUNCTION_INPUT", "values.0: Input should be a valid number"),
        ("raise", {"value": 7}, "FUNCTION_FAILED", "raise failed: RuntimeError: no luck with 7.0"),
        ("sleep", {"value": 30}, "FUNCTION_TIMEOUT", "was still running after 0.5 s, its limit"),
        ("spin", {}, "FUNCTION_TIMEOUT", "was still running after 0.5 s, its limit"),
        ("lie", {}, "FUNCTION_RESULT", "lie returned what its own schema does not allow: total: Input should be"),
        ("long", {}, "FUNCTION_RESULT", "long returned what its own schema does not allow"),
        ("die", {}, "FUNCTION_CRASHED", r"ended its process (status 3) while running"),
        ("absent", {}, "FUNCTION_UNKNOWN", "no function 'absent' here; there are: die, lie, long"),
    ],
)
def test_every_failure_says_its_reason_and_the_next_call_works(name, data, reason, text):
    error = failure(name, **data)
    assert error.reason == reason
    assert text in str(error)
    assert (error.retry_after_ms is not None) == (reason == "FUNCTION_UNKNOWN")
    begin = time.monotonic()
    assert call("sum", values=[2])["total"] == 2
    assert time.monotonic() - begin < 10


def test_a_shorter_limit_of_the_task_counts():
    begin = time.monotonic()
    params, (spec,) = jobs("whoami", data={"value": 1}, timeout_s=1)
    assert json.loads(TASK.execute(spec, Context()).output)["total"] == 1
    assert TASK.price(params).upper_bound_units == 10**6
    assert time.monotonic() - begin < 20


def test_init_runs_once_and_a_refusal_does_not_end_the_process():
    first = call("whoami", value=1)
    assert failure("sum", values=[]).reason == "FUNCTION_INPUT"
    assert failure("raise").reason == "FUNCTION_FAILED"
    assert call("whoami", value=2) == {**first, "total": 2.0, "started": 1}


def test_lines_of_an_artifact_are_split_and_come_back_in_order(tmp_path):
    files = programs.FolderFiles(tmp_path)
    digest = files.put(b"".join(b'{"values": [%d]}\n' % i for i in range(10)))
    params, specs = jobs("sum", files, inputs=digest, count=10, items_per_job=4)
    assert [TASK.layout(spec).count for spec in specs] == [4, 4, 2]
    assert TASK.inputs(params) == TASK.job_inputs(specs[0]) == [bytes.fromhex(digest)]
    outputs = [TASK.execute(spec, Context()).output for spec in specs]
    (artifact,) = TASK.assemble(params, [JobResult(bytes(32), output) for output in outputs])
    assert [json.loads(line)["total"] for line in artifact.data.splitlines()] == list(range(10))
    _, specs = jobs("sum", files, inputs=digest, count=11)
    with pytest.raises(JobFailed, match="line 10 of the inputs is missing"):
        TASK.execute(specs[0], Context())


def test_a_check_judges_the_form_and_no_more():
    _, (spec,) = jobs("sum", data={"values": [1]})
    honest = TASK.execute(spec, Context()).units(0)
    false = honest.replace(b"1.0", b"2.0")
    for unit, good in ((honest, True), (false, True), (b'{"a": 1}', False), (b"{", False), (b"", False),
                       (b"[" * 100_000, False), (b'"' + b"x" * 2**20 + b'"', False)):  # fmt: skip
        assert (TASK.expected_digests(spec, [Claim(0, unit)])[0] is not None) == good
    with pytest.raises(InvalidProof, match="is not 1 lines"):
        TASK.output_digests(spec, honest)


@pytest.mark.parametrize(
    ("payload", "field", "text"),
    [
        ({"function_name": "a b"}, "function_name", "the name of an exposed function"),
        ({"items": [{"values": [1]}]}, "data", "exactly one of data, items and inputs"),
        ({"data": [1]}, "data", "an object"),
        ({"data": {"text": "x" * 5000}}, "data", "put larger ones into an artifact"),
        ({"data": {"value": float("nan")}}, "data", "is not JSON"),
        ({"data": None, "inputs": "ab" * 32}, "count", "count must be given with inputs"),
    ],
)
def test_a_bad_payload_is_refused_by_field(payload, field, text):
    whole = {"function_name": "sum", "data": {"values": [1]}} | payload
    with pytest.raises(InvalidArgument) as caught:
        TASK.parse({name: value for name, value in whole.items() if value is not None})
    assert any(where == f"payload.{field}" and text in said for where, said in caught.value.violations)


def test_a_worker_advertises_names_and_schemas():
    environment, specs = offer([FILE, EXAMPLE])
    assert environment == {function.FILES_VARIABLE: os.pathsep.join([FILE, EXAMPLE])}
    found = {spec.name: spec for spec in specs}
    assert found["sleep"].timeout_ms == 500
    assert json.loads(found["sum"].input_schema)["required"] == ["values"]
    assert "reading_ease" in json.loads(found["readability"].output_schema)["properties"]
    assert offer([]) == ({}, [])


def test_a_file_that_does_not_load_says_why(tmp_path):
    with pytest.raises(InvalidArgument, match=r"absent\.py is not a file"):
        offer([str(tmp_path / "absent.py")])
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_library\n")
    with pytest.raises(JobFailed, match="ModuleNotFoundError: No module named 'no_such_library'"):
        offer([str(broken)])
    broken.write_text("x = 1\n")
    with pytest.raises(InvalidArgument, match="expose none"):
        offer([str(broken)])
    broken.write_text("def init():\n    raise OSError('no weights')\n")
    with pytest.raises(JobFailed, match="OSError: no weights"):
        offer([str(broken)])


@pytest.mark.parametrize(
    ("define", "text"),
    [
        (lambda: expose(name="a b"), "must be 1 to 64 letters"),
        (lambda: expose(name="a", timeout_s=0), "timeout_s of a must be above 0"),
        (lambda: expose(name="a")(lambda x: x), "must be annotated with a pydantic model"),
        (lambda: expose(name="a")(lambda: 1), "must take exactly one argument"),
    ],
)
def test_a_wrong_definition_is_refused_where_it_is_written(define, text):
    with pytest.raises((TypeError, ValueError), match=text):
        define()
