"""What a local cluster consists of: its keys, ports and configuration files in one folder.

    data/keys/*.key          secrets, 64 hexadecimal characters each, mode 0600
    data/<service>.toml      one configuration per process; values already there are kept
    data/<service>-N.toml    of the N-th replica, where there are some: they share a PostgreSQL database
    data/edge/envoy.json     Envoy's configuration, made at each start
    data/worker-N/           a worker's own folder: its key, nonce and configuration
    data/profile.toml        what a client needs, found by the `mesh` command
    data/tls/                the folder's certificate authority (computemesh.cli.certificates), where TLS was asked for
    data/logs/*.log          what each process wrote
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from computemesh.service.tls import PLAIN, Trust
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, InvalidState
from computemesh.trust.identity import PrivateKey

ROOT = Path(__file__).resolve().parents[2]
CHAIN_ID = "computemesh-local"
HOST = "127.0.0.1"
PORT_BASE = 7101
METRICS_ABOVE = 100
API_KEY_NAME = "dev"
DRAIN_TIMEOUT_MS = 8_000
"""How long a local worker finishes what it holds; below the cluster's stop timeout, so that it leaves in order."""
SERVICES = ("ledger", "market", "orchestrator")
REPLICAS_ABOVE = 80
EDGE = "edge"
EDGE_PORT = 3
"""The edge's port, counted from the first."""


@dataclass(frozen=True, slots=True)
class Node:
    """One process: its module, its configuration file and the address whose health says it is up."""

    name: str
    module: str
    config: Path
    address: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A prepared cluster folder. `first_run` is true where this call created it. `trust` is how its processes are
    dialled."""

    data: Path
    nodes: dict[str, Node]
    keys: dict[str, PrivateKey]
    api_key: str
    api_account: PrivateKey
    first_run: bool
    trust: Trust = PLAIN

    def reach(self, service: str) -> str:
        """Where a service is reached: HOST:PORT of it and its replicas, with commas between."""
        return _reach({name: node.address for name, node in self.nodes.items()}, service)

    def metrics(self, name: str) -> str:
        """HOST:PORT where a process shows its metrics; empty: nowhere."""
        return str(read_toml(self.nodes[name].config).get("metrics_listen", ""))

    @property
    def names(self) -> dict[str, str]:
        """Who an address of this cluster belongs to."""
        named = {key.address: name for name, key in self.keys.items()}
        return {**named, self.api_account.address: f"api:{API_KEY_NAME}"}


def write_toml(path: Path, values: Mapping[str, Any], mode: int = 0o644, comment: str = "") -> None:
    """Write text, numbers, booleans, lists of them and one level of tables, atomically. No change, no write."""
    lines = [f"# {line}" for line in comment.splitlines()]
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    lines += [f"{name} = {_toml(value)}" for name, value in values.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
    text = "\n".join(lines) + "\n"
    if path.exists() and _text(path) == text:
        return
    write_text(path, text, mode)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)  # a JSON string is a TOML basic string


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def write_text(path: Path, text: str, mode: int) -> None:
    """Write a file atomically, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def _secret(path: Path) -> str:
    """The 64 hexadecimal characters in `path`, made now if the file is missing."""
    if not path.exists():
        write_text(path, secrets.token_hex(32) + "\n", 0o600)
    text = _text(path).strip()
    try:
        valid = len(bytes.fromhex(text)) == 32
    except ValueError:
        valid = False
    if not valid:
        raise InvalidArgument(f"{path} does not hold a key (64 hexadecimal characters); restore it or remove it")
    return text


def _key(path: Path) -> PrivateKey:
    return PrivateKey.from_bytes(bytes.fromhex(_secret(path)))


def worker_key(folder: Path) -> PrivateKey:
    """The key in a worker's folder, made now if it is missing."""
    return _key(folder / "worker.key")


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now; all are held until all are chosen, so they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def taken(address: str) -> bool:
    """Whether another process listens on HOST:PORT. Raises InvalidArgument where HOST is not this machine's."""
    host, _, port = address.rpartition(":")
    try:
        for name in {host, _listen(address).rpartition(":")[0]}:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((name, int(port)))
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return True
        if isinstance(error, PermissionError):
            raise InvalidArgument(f"may not listen on {address}: ports below 1024 are for the superuser",
                                  reason="CANNOT_LISTEN") from None  # fmt: skip
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(f"cannot listen on {host!r}: is it an address of this machine? ({why})",
                              reason="CANNOT_LISTEN") from None  # fmt: skip
    return False


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds, nothing where there is none. Raises InvalidArgument naming it."""
    try:
        return tomllib.loads(_text(path)) if path.exists() else {}
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from None


def replicas_of(service: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that are `service` or a replica of it, in their order."""
    return [name for name in names if name.split("-")[0] == service]


def _reach(address: Mapping[str, str], service: str) -> str:
    return ",".join(address[name] for name in replicas_of(service, address))


def _addresses(
    data: Path, replicas: list[str], workers: list[str], port_base: int | None, host: str | None,
    edge_port: int | None,
) -> dict[str, str]:  # fmt: skip
    """Where each process is reached: free ports for 0, the stored or default ports for None, else from the base.
    Services are reached at `host` (None: the stored one), the workers' control ports from this machine only.
    `edge_port` None: there is no edge, 0: its port is chosen like the others'."""
    names = [*SERVICES, *replicas, *workers, *([] if edge_port is None else [EDGE])]
    stored = {name: read_toml(_config_path(data, name)).get("control_listen" if name in workers else "listen", "")
              for name in names}
    public = host or str(read_toml(_config_path(data, "orchestrator")).get("advertise", f"{HOST}:0")).rpartition(":")[0]
    hosts = {name: HOST if name in workers else public for name in names}
    if port_base == 0:
        numbers = free_ports(len(names))
        return _at(hosts, numbers, edge_port)
    base = PORT_BASE if port_base is None else port_base
    numbers = [*range(base, base + 3), *range(base + REPLICAS_ABOVE, base + REPLICAS_ABOVE + len(replicas)),
               *range(base + 10, base + 10 + len(workers))]  # fmt: skip
    if base < 1 or max(numbers) > 65535:
        highest = 65535 - (max(numbers) - base)
        raise InvalidArgument(f"--port-base is {base}, must be 1..{highest}, or 0 for free ports")
    numbers += [] if edge_port is None else [base + EDGE_PORT]
    if port_base is None:
        numbers = [_port(_config_path(data, name), stored[name], number)
                   for name, number in zip(names, numbers, strict=True)]  # fmt: skip
    return _at(hosts, numbers, edge_port)


def _at(hosts: Mapping[str, str], numbers: list[int], edge_port: int | None) -> dict[str, str]:
    """HOST:PORT by name; `hosts` and `numbers` have one order."""
    ports = dict(zip(hosts, numbers, strict=True)) | ({EDGE: edge_port} if edge_port else {})
    return {name: f"{hosts[name]}:{port}" for name, port in ports.items()}


def _metrics(data: Path, address: Mapping[str, str], port_base: int | None) -> dict[str, str]:
    """Where each process shows its metrics, from this machine only: free ports for 0, the stored one for None, else a
    hundred above its address."""
    if port_base == 0:
        return {name: f"{HOST}:{port}" for name, port in zip(address, free_ports(len(address)), strict=True)}
    shown = {}
    for name, at in address.items():
        stored = read_toml(_config_path(data, name)).get("metrics_listen") if port_base is None else None
        shown[name] = f"{HOST}:{int(at.rpartition(':')[2]) + METRICS_ABOVE}" if stored is None else str(stored)
    return shown


def _port(path: Path, stored: Any, default: int) -> int:
    """The port in a stored HOST:PORT, the default where nothing is stored."""
    if stored == "":
        return default
    _, colon, port = str(stored).rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"{path} listens on {stored!r}, which is not HOST:PORT")
    return int(port)


def _listen(address: str) -> str:
    """What a service binds to be reached at `address`: every interface, unless that is this machine's loopback."""
    host, _, port = address.rpartition(":")
    return address if host in (HOST, "localhost") else f"0.0.0.0:{port}"


def _config_path(data: Path, name: str) -> Path:
    return data / name / "worker.toml" if name.startswith("worker") else data / f"{name}.toml"


def prepare(
    data: Path, workers: int, port_base: int | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None,
    host: str | None = None, check: Callable[[Mapping[str, str]], None] = lambda addresses: None,
    edge_port: int | None = None, tls: bool = False, database: str = "", replicas: int = 1,
) -> Plan:
    """Create or complete the cluster folder `data` and say what it holds.

    `port_base` None keeps stored ports (7101.. at first), 0 takes free ones. `host` is where other machines reach the
    services; None keeps what is stored (this machine only at first). `overrides` are configuration values per
    process name; "worker" means every worker. `check` hears where each process will be reached before anything is
    written, and may raise. `edge_port` is the edge's, 0 as stored or next to the others, None for no edge. `tls` gives
    each process a certificate; a folder that has some keeps to it. `database` is where the services keep their tables,
    the URL of a PostgreSQL; empty: as stored, SQLite at first. There are `replicas` of each service in it. Values
    already in a configuration are kept, addresses and overrides excepted. Raises InvalidArgument, InvalidState where a
    stored file contradicts another.
    """
    data = data.absolute()
    names = [f"worker-{number}" for number in range(1, workers + 1)]
    more = [f"{service}-{number}" for number in range(2, replicas + 1) for service in SERVICES]
    address = _addresses(data, more, names, port_base, host, edge_port)
    shown = _metrics(data, {name: at for name, at in address.items() if name != EDGE}, port_base)
    check({**address, **{f"{name} metrics": at for name, at in shown.items() if at}})
    first_run = not (data / "keys" / "market.key").exists()
    data.mkdir(parents=True, exist_ok=True)
    (data / "keys").mkdir(mode=0o700, exist_ok=True)
    parties = ("authority", "market", *replicas_of("orchestrator", address), "treasury", "customer")
    keys = {name: _key(data / "keys" / f"{name}.key") for name in parties}
    keys |= {name: _key(data / name / "worker.key") for name in names}
    _secret(data / "keys" / "log.key")
    api_key = _api_key(data / "keys" / "api.key")
    configs = _configs(data, keys, address, names, api_key)
    given = bool(database)
    database = database or str(read_toml(_config_path(data, "ledger")).get("database", ""))
    if more and not database:
        raise InvalidArgument("replicas share a PostgreSQL database: name it with --database", reason="NO_DATABASE")
    if database:
        _put_into(database, f"mesh_{keys['authority'].public.hex()[2:10]}", configs)
    for name, at in shown.items():
        configs[name]["metrics_listen"] = at
    trust = _encrypt(data, configs, address) if tls or (data / "tls" / "ca.pem").exists() else PLAIN
    moved = {"metrics_listen", "listen", "control_listen", "advertise", *SERVICES, "api_key_file",
             *(("database", "database_schema") if given else ())}  # fmt: skip
    for name, planned in configs.items():
        path = _config_path(data, name)
        stored = read_toml(path)
        if stored.get("chain_id", CHAIN_ID) != planned.get("chain_id", CHAIN_ID):
            raise InvalidState(f"{path} is of chain {stored['chain_id']!r}, this cluster is {CHAIN_ID!r}")
        values = {**planned, **{key: value for key, value in stored.items() if key not in moved}}
        if stored.get("orchestrator_keys"):  # a replica may be new
            both = [*stored["orchestrator_keys"], *planned["orchestrator_keys"]]
            values["orchestrator_keys"] = list(dict.fromkeys(both))
        for who in {name, name.split("-")[0]}:
            values |= (overrides or {}).get(who, {})
        write_toml(path, values)
    account = tagged(
        "computemesh.v1/api-account", keys["market"].secret + hashlib.sha256(API_KEY_NAME.encode()).digest()
    )
    nodes = {name: Node(name, name.split("-")[0], _config_path(data, name), address[name]) for name in address}
    return Plan(data, nodes, keys, api_key, PrivateKey.from_bytes(account), first_run, trust)


def _put_into(database: str, mesh: str, configs: dict[str, dict[str, Any]]) -> None:
    """Every service's tables into a database that other meshes may use too. Replicas of ledger and market have one
    schema, and one of them serves; each orchestrator has its own, and all serve."""
    for name, values in configs.items():
        service = name.split("-")[0]
        if service in SERVICES:
            one = name.replace("-", "_") if service == "orchestrator" else service
            values |= {"database": database, "database_schema": f"{mesh}_{one}"}


def _encrypt(data: Path, configs: dict[str, dict[str, Any]], address: Mapping[str, str]) -> Trust:
    """Gives every process a certificate and the authority to believe; what the folder's own client takes."""
    from computemesh.cli.certificates import Authority

    authority = Authority(data / "tls")
    for name, values in configs.items():
        hosts = {HOST, "localhost", address[name].rpartition(":")[0]}
        certificate, key = map(str, authority.certificate(name, hosts))
        mine = ("tls_certificate", "tls_key") if name == EDGE else ("tls_cert_file", "tls_key_file")
        values |= {mine[0]: certificate, mine[1]: key, "tls_ca_file": str(authority.ca_file)}
    return Trust(str(authority.ca_file), *map(str, authority.certificate("client", ("localhost",))))


def _api_key(path: Path) -> str:
    if not path.exists():
        write_text(path, "mesh_" + secrets.token_urlsafe(24) + "\n", 0o600)
    return _text(path).strip()


def _configs(
    data: Path, keys: dict[str, PrivateKey], address: dict[str, str], workers: list[str], api_key: str
) -> dict[str, dict[str, Any]]:
    digest = hashlib.sha256(api_key.encode()).hexdigest()
    shared = {"chain_id": CHAIN_ID}
    artifacts = (data / "artifacts").as_uri()
    configs: dict[str, dict[str, Any]] = {
        "ledger": {
            "listen": _listen(address["ledger"]), "data_dir": str(data / "ledger"), **shared,
            "authority_key": keys["authority"].public.hex(), "treasury_address": keys["treasury"].address,
            "log_key_file": str(data / "keys" / "log.key"),
        },
        "market": {
            "listen": _listen(address["market"]), "data_dir": str(data / "market"), **shared,
            "key_file": str(data / "keys" / "market.key"), "ledger": _reach(address, "ledger"),
            "api_keys": [f"{API_KEY_NAME}:{digest}"],
            "orchestrator_keys": [keys[name].public.hex() for name in replicas_of("orchestrator", address)],
            "artifacts": artifacts,
        },
        "orchestrator": {
            "listen": _listen(address["orchestrator"]), "advertise": address["orchestrator"],
            "data_dir": str(data / "orchestrator"), **shared,
            "key_file": str(data / "keys" / "orchestrator.key"),
            "market": _reach(address, "market"), "ledger": _reach(address, "ledger"), "artifacts": artifacts,
        },
    }  # fmt: skip
    for service in SERVICES:
        for name in replicas_of(service, address)[1:]:
            configs[name] = {**configs[service], "listen": _listen(address[name]), "data_dir": str(data / name)}
            if service == "ledger":  # all have one anchor, the first one's
                stored = str(read_toml(_config_path(data, service)).get("anchor", ""))
                configs[name]["anchor"] = stored or (data / "ledger-anchor").as_uri()
            if service == "orchestrator":
                configs[name] |= {"advertise": address[name], "key_file": str(data / "keys" / f"{name}.key")}
    for values in configs.values():
        values["introspection"] = True  # what `mesh explain` prints asks the services for their contracts
    for name in workers:
        configs[name] = {
            "orchestrator": _reach(address, "orchestrator"), "data_dir": str(data / name),
            "control_listen": address[name], "display_name": name, "platform": "",
            "drain_timeout_ms": DRAIN_TIMEOUT_MS,
        }  # fmt: skip
    if EDGE in address:
        local = _listen(address[EDGE]) == address[EDGE]
        configs[EDGE] = {
            "listen": _listen(address[EDGE]), "advertise": address[EDGE], "data_dir": str(data / EDGE),
            **{name: _reach(address, name) for name in SERVICES}, "page": str(ROOT / "dashboard"),
            "openapi": str(ROOT / "edge" / "openapi.json"),
            # Who reaches this machine's loopback may use its API key; nobody else may.
            "api_key_file": str(data / "keys" / "api.key") if local else "",
        }  # fmt: skip
    return configs
