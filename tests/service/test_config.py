"""One TOML file and environment variables become one frozen dataclass per service; what is misspelt is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest

from computemesh.service import config
from computemesh.service.server import build_server
from computemesh.trust.errors import InvalidArgument
from ledger.config import Config as LedgerConfig
from market.config import Config as MarketConfig
from orchestrator.config import Config as OrchestratorConfig
from worker.config import WorkerConfig

CONFIGS = {"ledger": LedgerConfig, "market": MarketConfig, "orchestrator": OrchestratorConfig, "worker": WorkerConfig}


@dataclass(frozen=True)
class Example:
    listen: str
    lease_ms: int = 15_000
    keys: tuple[str, ...] = ()
    strict: bool = False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def test_configuration_comes_from_file_then_environment(path: Path) -> None:
    path.write_text('listen = "a:1"\nkeys = ["x"]\n')
    variables = {"COMPUTEMESH_MARKET_LEASE_MS": "7", "COMPUTEMESH_MARKET_STRICT": "true", "COMPUTEMESH_MARKET": "x"}
    assert config.load(Example, path, "market", variables) == Example("a:1", 7, ("x",), True)
    alone = {"COMPUTEMESH_MARKET_LISTEN": "b:2", "COMPUTEMESH_MARKET_KEYS": "x,y"}
    assert config.load(Example, None, "market", alone) == Example("b:2", keys=("x", "y"))


def test_one_file_configures_every_service(path: Path) -> None:
    path.write_text('[market]\nlisten = "a:1"\n[ledger]\nlisten = "b:1"\nlease_ms = 3\n')
    assert config.load(Example, path, "market", {}) == Example("a:1")
    assert config.load(Example, path, "ledger", {}) == Example("b:1", 3)


@pytest.mark.parametrize(("text", "said"), [
    ('listen = "a"\nlisetn = "b"\n', "lisetn.*did you mean listen?"),
    ('listen = "a"\nzzz = "b"\n', "zzz.*known are keys, lease_ms"),
    ("lease_ms = 1\n", "listen"), ('listen = "a"\nlease_ms = "soon"\n', "lease_ms.*an integer"),
    ('listen = "a"\nlease_ms = true\n', "lease_ms.*an integer"),
    ('listen = "a"\nkeys = [1]\n', "keys.*list of strings"),
    ("listen = \n", "--config"), ("listen = 3\n", "listen.*a string"),
    ('[markte]\nlisten = "a"\n', "markte.*did you mean market?"),
    ('stray = 1\n[market]\nlisten = "a"\n', "stray.*no key outside")])
def test_wrong_configuration_names_the_key(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=said):
        config.load(Example, path, "market", {})


@pytest.mark.parametrize(("name", "value", "said"), [
    ("COMPUTEMESH_MARKET_LISTNE", "a:1", "did you mean COMPUTEMESH_MARKET_LISTEN?"),
    ("COMPUTEMESH_MARKET_LEASE_MS", "soon", "COMPUTEMESH_MARKET_LEASE_MS.*an integer"),
    ("COMPUTEMESH_MARKET_STRICT", "maybe", "COMPUTEMESH_MARKET_STRICT.*true or false")])
def test_wrong_variables_are_refused_by_name(path: Path, name: str, value: str, said: str) -> None:
    path.write_text('listen = "a"\n')
    with pytest.raises(InvalidArgument, match=said):
        config.load(Example, path, "market", {name: value})


@pytest.mark.parametrize("service", CONFIGS)
def test_each_service_has_one_frozen_dataclass_that_text_can_fill(service: str) -> None:
    """Whatever a field is, a variable sets it: no setting needs a file."""
    cls = CONFIGS[service]
    assert cls.__dataclass_params__.frozen
    kinds = typing.get_type_hints(cls)
    words = {str: "text", int: "1", float: "0.5", bool: "true"}
    prefix = f"COMPUTEMESH_{service.upper()}_"
    variables = {prefix + name.upper(): words.get(kind, "x,y") for name, kind in kinds.items()}
    loaded = config.load(cls, None, service, variables)
    for field in dataclasses.fields(cls):
        kind = kinds[field.name]
        assert kind in words or kind == tuple[str, ...], f"{field.name}: {kind} cannot be written in a variable"
        assert getattr(loaded, field.name) == (kind(words[kind]) if kind in words else ("x", "y")), field.name


@pytest.mark.parametrize("service", CONFIGS)
def test_a_service_refuses_a_misspelt_key_before_it_does_anything(service: str, path: Path) -> None:
    path.write_text('data_dri = "/nowhere"\n')
    done = subprocess.run([sys.executable, "-m", service, "--config", str(path)], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode != 0
    assert "data_dri" in done.stderr
    assert "did you mean data_dir?" in done.stderr
    assert "Traceback" not in done.stderr


NUMBERS = [(service, field.name) for service, cls in CONFIGS.items() for field in dataclasses.fields(cls)
           if typing.get_type_hints(cls)[field.name] in (int, float)]  # fmt: skip


@pytest.mark.parametrize(("service", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e300"])
def test_no_number_is_taken_that_is_none_of_its_kind(path: Path, service: str, name: str, value: str) -> None:
    path.write_text(f"{name} = {value}\n")
    required = {f"COMPUTEMESH_{service.upper()}_{field.name.upper()}": "x"
                for field in dataclasses.fields(CONFIGS[service])
                if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING}  # fmt: skip
    with pytest.raises(InvalidArgument, match=f"configuration: {name} is .*, expected") as refused:
        config.load(CONFIGS[service], path, service, required)
    assert refused.value.reason == "INVALID_CONFIGURATION"


@pytest.mark.parametrize("listen", ["127.0.0.1:99999", "127.0.0.1:abc", "127.0.0.1", ":7102", "127.0.0.1:-1"])
def test_an_address_to_listen_on_is_one(listen: str) -> None:
    with pytest.raises(InvalidArgument, match=r"listen: is .* expected HOST:PORT"):
        build_server(listen, lambda server: None, [])
