"""Laws of a child process: whatever it does, the parent gets an error with a name, in time, and the child is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from computemesh.sandbox.process import Child, JobFailed, Keeper, Limits

LIMITS = Limits(5.0, 200 * 2**20, 1000)
CASES = {
    "memory": ("PROGRAM_MEMORY", "bytes while misbehaving; its limit is 209,715,200"),
    "address-space": ("PROGRAM_MEMORY", "ended its process"),
    "flood": ("PROGRAM_OUTPUT", "sends 1,099,511,627,776 bytes, where 1,000 are allowed"),
    "drip": ("PROGRAM_OUTPUT", "sends 1 bytes, where 0 are allowed"),
    "junk": ("PROGRAM_CRASHED", "sent something else than an answer"),
    "abort": ("PROGRAM_CRASHED", "SIGABRT"),
    "leave": ("PROGRAM_CRASHED", "status 7.*last words"),
    "told": ("PROGRAM_CRASHED", "out of memory xxx"),
    "silence": ("PROGRAM_TIMEOUT", "was still misbehaving after 5 s, its limit"),
}


def rogue(how: str) -> Child:
    return Child("tests.sandbox.rogue", "PROGRAM", {}, (how,))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("how", CASES)
def test_a_rogue_child_is_named_and_gone(how):
    reason, text = CASES[how]
    child = rogue(how)
    begin = time.monotonic()
    child.start()
    with pytest.raises(JobFailed, match=text) as caught:
        list(child.ask({}, LIMITS))
    assert caught.value.reason == reason
    assert "RESOURCE_EXHAUSTED" not in str(caught.value)
    assert len(str(caught.value)) <= 900
    assert time.monotonic() - begin < 15
    assert gone(child.pid)


def test_a_child_sees_no_secrets_no_files_and_no_network(monkeypatch):
    monkeypatch.setenv("COMPUTEMESH_API_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("XLA_TEST_PORT", str(server.getsockname()[1]))
        child = rogue("environment")
        child.start()
        (_, data), *_ = list(child.ask({}, LIMITS))
    child.close()
    seen = json.loads(data)
    assert not {name for name in seen["names"] if "KEY" in name}
    assert seen["folder"] == []
    separate = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    assert seen["network"] == "OSError" or seen["network"] == "ConnectionRefusedError" or not separate


def test_an_exception_of_the_caller_ends_the_child():
    child = rogue("silence")
    child.start()

    def lost() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(child.ask({}, LIMITS, lost))
    assert gone(child.pid)


def test_a_child_ends_with_its_parent():
    code = (
        "from computemesh.sandbox.process import Child, Limits\n"
        "child = Child('tests.sandbox.rogue', 'PROGRAM', {}, ('silence',))\n"
        "child.start(); print(child.pid, flush=True)\n"
        "list(child.ask({}, Limits(60, 0, 0)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert gone(pid)


def test_a_kept_child_serves_its_own_key_only():
    keeper = Keeper()
    with keeper.child("a", lambda: rogue("environment")) as first:
        list(first.ask({}, LIMITS))
    with keeper.child("a", lambda: rogue("environment")) as again:
        assert again is first
    with keeper.child("b", lambda: rogue("environment")) as other:
        assert other is not first
        assert gone(first.pid)
    keeper.close()
    assert gone(other.pid)
