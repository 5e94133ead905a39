"""`mesh doctor`: what is wrong with this setup, and what to do about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from computemesh.cli import output, probe
from computemesh.cli.options import JsonOption, ProfileOption, find_profile

if TYPE_CHECKING:
    from computemesh.client.profile import Profile
    from computemesh.service.tls import Trust

OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "skip"
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 30.0
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1 << 30, 5 << 30
"""The artifact store refuses what would leave less than 1 GiB."""
JAX_LIMIT_S = 120.0
JAX_PROBE = (
    "import json, jax; import jax.numpy as jnp; x = int(jnp.arange(4).sum()); d = jax.devices()[0];"
    "print(json.dumps({'jax': jax.__version__, 'platform': d.platform, 'kind': d.device_kind, 'sum': x}))"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `state` is ok, warn, FAIL or skip; `step` what to do next, empty where nothing."""

    name: str
    state: str
    detail: str
    step: str = ""


def doctor(
    profile: ProfileOption = None,
    no_jax: bool = typer.Option(False, "--no-jax", help="Do not start JAX, which takes seconds."),
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong: GPU, JAX, disk, ports, TLS, services, clock, account. Exit status 1 if anything is."""
    found: list[Finding] = []
    for finding in examine(profile, not no_jax):
        found.append(finding)
        if not as_json:
            step = f"\n       {'':<14}next: {finding.step}" if finding.step else ""
            output.emit(None, f"  {finding.state:<4} {finding.name:<14} {finding.detail}{step}")
    bad = [finding.name for finding in found if finding.state == FAIL]
    summary = f"{len(bad)} to mend: {', '.join(bad)}" if bad else "nothing is wrong"
    output.emit({"ok": not bad, "findings": found}, summary)
    if bad:
        raise typer.Exit(1)


def examine(profile: str | None, with_jax: bool = True) -> Iterator[Finding]:
    """Every finding, as it is made."""
    from computemesh.trust.errors import MeshError

    yield _python()
    if with_jax:
        yield from _jax()
    found: Profile | None = None
    try:
        chosen = find_profile(profile)
        yield _profile(chosen)
        found = chosen
    except MeshError as error:
        step = _PROFILE_STEP if error.reason == "PROFILE_NOT_FOUND" else "correct it, or choose another with --profile"
        yield Finding("profile", FAIL, error.message, step)
    yield _disk(Path(found.path).parent if found else Path())
    if found is None:
        yield from _ports()
        return
    encryption = _encryption(found)
    if encryption.state == FAIL:  # no service can be reached
        yield encryption
        return
    serving = []
    for name, address, service in _services(found):
        finding = _service(name, address, service, found.trust)
        serving += [name] if finding.state == OK else []
        yield finding
    yield encryption
    yield from _answers(found, serving)


_PROFILE_STEP = "`mesh up` starts a local mesh; `mesh profile set NAME market=HOST:PORT` names another"


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", OK, f"{version} at {sys.executable}")


def _jax(run: Callable[..., Any] = subprocess.run) -> Iterator[Finding]:
    """JAX works, and sees the GPU that the driver sees. In a process of its own: it takes the device."""
    driver = _driver(run)
    try:
        done = run([sys.executable, "-c", JAX_PROBE], capture_output=True, text=True, timeout=JAX_LIMIT_S)
    except subprocess.TimeoutExpired:
        yield Finding("jax", FAIL, f"did not compute anything within {JAX_LIMIT_S:.0f} s",
                      "another process may hold the device: `nvidia-smi` shows which")  # fmt: skip
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        yield Finding("jax", FAIL, f"does not work: {last}", "pip install --force-reinstall jax jaxlib")
        return
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    yield Finding("jax", OK, f"{seen['jax']} computes on {seen['platform']} ({seen['kind']})")
    if driver is None:
        yield Finding("gpu", SKIP, "no NVIDIA driver: workers here compute on the CPU")
    elif driver.startswith("!"):
        yield Finding("gpu", FAIL, f"nvidia-smi: {driver[1:]}", "reinstall the driver, or reboot after its update")
    elif seen["platform"] == "cpu":
        yield Finding("gpu", FAIL, f"the driver sees {driver}, JAX only the CPU",
                      "pip install 'computemesh[cuda12]', and unset JAX_PLATFORMS")  # fmt: skip
    else:
        yield Finding("gpu", OK, driver)


def _driver(run: Callable[..., Any]) -> str | None:
    """The GPUs the driver lists, "!" and its complaint, or None where there is no driver."""
    try:
        done = run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout if done.returncode == 0 else done.stdout or done.stderr).strip().splitlines()
    first = lines[0].partition(" (UUID")[0] if lines else "no output"
    return first if done.returncode == 0 else f"!{first[:120]}"


def _profile(found: Profile) -> Finding:
    who = "an API key" if found.api_key else "a key" if found.key() else "nobody"
    if who == "nobody":
        return Finding("profile", WARN, f"{found.path} says not who you are: only the ledger can be read",
                       "mesh profile set NAME api_key=@FILE, or key_file=FILE")  # fmt: skip
    mode = Path(found.path).stat().st_mode & 0o077
    if mode and found.api_key:
        return Finding("profile", WARN, f"{found.path} holds an API key and others may read it",
                       f"chmod 600 {found.path}")  # fmt: skip
    return Finding("profile", OK, f"{found.path}, as {who}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    said = f"{free / 2**30:.1f} GiB free in {folder.absolute()}"
    step = "make room, or move the folder: `mesh up --data DIR`, `mesh worker join --data DIR`"
    if free < DISK_FAIL_BYTES:
        return Finding("disk", FAIL, f"{said}; artifacts are refused below 1 GiB", step)
    return Finding("disk", WARN, said, step) if free < DISK_WARN_BYTES else Finding("disk", OK, said)


def _ports() -> Iterator[Finding]:
    """Whether `mesh up` could have its ports."""
    from computemesh.cli.plan import HOST, PORT_BASE, SERVICES, taken

    busy = [f"{PORT_BASE + at} ({name})" for at, name in enumerate(SERVICES) if taken(f"{HOST}:{PORT_BASE + at}")]
    if busy:
        yield Finding("ports", FAIL, f"another program listens on {', '.join(busy)}",
                      "stop it, or `mesh up --port-base 7201`")  # fmt: skip
    else:
        yield Finding("ports", OK, f"{PORT_BASE} to {PORT_BASE + 2} are free for `mesh up`")


def _services(found: Profile) -> list[tuple[str, str, str]]:
    package = "computemesh.v1"
    named = [("market", found.market, f"{package}.MarketService"), ("ledger", found.ledger, f"{package}.LedgerService"),
             ("orchestrator", found.orchestrator, f"{package}.OrchestratorService")]  # fmt: skip
    workers = [(name, address, f"{package}.WorkerService") for name, address in found.workers.items()]
    return [row for row in named if row[1] or row[0] == "market"] + workers


_STEPS = {
    probe.NO_ADDRESS: "name its HOST:PORT in the profile: mesh profile set NAME {name}=HOST:PORT",
    probe.NO_HOST: "correct the host name in the profile, or the resolver of this machine",
    probe.REFUSED: "is the mesh running? `mesh up` starts a local one; else ask who runs it",
    probe.SILENT: "a firewall may drop it: is the port open, and the address reachable from here?",
    probe.TLS: "name the CA of its certificate: mesh profile set NAME tls_ca_file=FILE",
    probe.NO_TLS: "take tls_ca_file out of the profile: mesh profile set NAME tls_ca_file=",
    probe.UNTRUSTED: "a renewed CA: ask its operator for the file, tls_ca_file; else this is not who you think it is",
    probe.ASKS_CERTIFICATE: "mesh profile set NAME tls_cert_file=FILE tls_key_file=FILE, from the operator of {name}",
    probe.NOT_GRPC: "another program has the port: correct the profile, or `mesh up --port-base 7201`",
    probe.OTHER_SERVICE: "two addresses in the profile are exchanged: correct {name}",
    probe.NOT_SERVING: "wait a moment; if it stays so, look at its log (data/logs/{name}.log)",
}


def _service(name: str, address: str, service: str, trust: Trust) -> Finding:
    for one in address.split(","):  # of replicas one serves
        answer = probe.probe(one, service, trust)
        if answer.state == probe.SERVING:
            return Finding(name, OK, f"serves at {one}")
    where = f"{address}: " if address else ""
    return Finding(name, FAIL, f"{where}{answer.detail}", _STEPS[answer.state].format(name=name))


def _encryption(found: Profile) -> Finding:
    """Whether connections are encrypted; on this machine they need not be."""
    from computemesh.trust.errors import InvalidArgument

    try:
        if found.trust.credentials() is not None:
            return Finding("tls", OK, f"calls are encrypted, to services that {found.tls_ca_file} answers for")
    except InvalidArgument as error:
        return Finding("tls", FAIL, error.message, "correct it: mesh profile set NAME tls_ca_file=FILE")
    far = {name: one for name, addresses, _ in _services(found) for one in addresses.split(",")
           if one and one.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]")}  # fmt: skip
    if not far:
        return Finding("tls", OK, "not needed: every service is on this machine")
    return Finding("tls", WARN, f"calls to {', '.join(far.values())} are not encrypted",
                   "mesh profile set NAME tls_ca_file=FILE; else use networks you trust, or a tunnel")  # fmt: skip


def _answers(found: Profile, serving: list[str]) -> Iterator[Finding]:
    """What services that answer say: clock, account, log key."""
    from computemesh.client import Client
    from computemesh.trust.errors import MeshError

    with Client(found, timeout=5.0, retry_for=0.0) as client:
        for name, needs, check in (("clock", "market", _clock), ("account", "market", _account),
                                   ("log key", "ledger", _log_key)):  # fmt: skip
            if needs not in serving:
                silent = "does not answer" if getattr(found, needs) else "is not named in the profile"
                yield Finding(name, SKIP, f"the {needs} {silent}")
                continue
            try:
                yield check(client)
            except MeshError as error:
                yield Finding(name, FAIL, f"{error.reason}: {error.message}", output.NEXT_STEPS.get(error.reason, ""))


def _clock(client: Any) -> Finding:
    off = client.market_info().now_ms / 1000 - time.time()
    said = f"this machine's is {abs(off):.1f} s {'behind' if off > 0 else 'ahead of'} the market's"
    step = "timedatectl set-ntp true (deadlines and tokens are judged by the market's clock)"
    if abs(off) > CLOCK_FAIL_S:
        return Finding("clock", FAIL, said, step)
    return Finding("clock", WARN, said, step) if abs(off) > CLOCK_WARN_S else Finding("clock", OK, said)


def _account(client: Any) -> Finding:
    from computemesh.trust.errors import Unauthenticated

    try:
        total = client.page(page_size=1).total
    except Unauthenticated as error:
        return Finding("account", FAIL, f"the market does not know who you are: {error.message}",
                       "correct api_key or key_file: mesh profile set NAME api_key=@FILE")  # fmt: skip
    return Finding("account", OK, f"accepted by the market, {total} tasks")


def _log_key(client: Any) -> Finding:
    info, profile = client.ledger_info(), client.profile
    if not profile.ledger_vkey:
        return Finding("log key", WARN, "the profile pins none: receipts cannot be verified",
                       f"ask the operator, then: mesh profile set NAME ledger_vkey={info.vkey}")  # fmt: skip
    if profile.ledger_vkey != info.vkey:
        return Finding("log key", FAIL, f"the ledger signs with {info.vkey}, the profile pins {profile.ledger_vkey}",
                       "this is another ledger, or a wrong profile: do not accept its receipts")  # fmt: skip
    return Finding("log key", OK, f"the ledger's is the pinned one, block {info.block_height}")
