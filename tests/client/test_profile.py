"""Where a profile is found, and what a broken one says."""

from pathlib import Path

import pytest

from computemesh import InvalidArgument, NotFound
from computemesh.client.profile import Profile, read_key


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_the_named_profile_goes_before_variable_folder_and_home(home: Path, tmp_path: Path) -> None:
    named = write(tmp_path / "named.toml", 'market = "named:1"')
    variable = write(tmp_path / "variable.toml", 'market = "variable:1"')
    write(home / ".config/computemesh/profile.toml", 'market = "home:1"')
    environ = {"COMPUTEMESH_PROFILE": str(variable)}
    assert Profile.discover(named, environ).market == "named:1"
    assert Profile.discover(None, environ).market == "variable:1"
    assert Profile.discover(None, {}).market == "home:1"
    write(tmp_path / "data/profile.toml", 'market = "folder:1"')
    assert Profile.discover(None, {}).market == "folder:1"


def test_no_profile_says_what_to_do(home: Path) -> None:
    with pytest.raises(NotFound, match=r"mesh up.*--profile") as caught:
        Profile.discover(None, {})
    assert caught.value.reason == "PROFILE_NOT_FOUND"


def test_a_named_profile_that_is_missing_is_not_replaced_by_another(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "data/profile.toml", 'market = "folder:1"')
    with pytest.raises(NotFound, match=r"gone\.toml"):
        Profile.discover(None, {"COMPUTEMESH_PROFILE": "gone.toml"})


@pytest.mark.parametrize(
    ("text", "says"),
    [("market = ", "not TOML"), ("market = 5", "wrong type"), ('markt = "a:1"', "unknown field 'markt'")],
)
def test_a_broken_profile_names_its_file_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path / "profile.toml", text)
    with pytest.raises(InvalidArgument, match=says) as caught:
        Profile.load(path)
    assert str(path) in caught.value.message


def test_key_files_are_relative_to_the_profile(tmp_path: Path) -> None:
    write(tmp_path / "a/keys/me.key", "00" * 31 + "01\n")
    profile = Profile.load(write(tmp_path / "a/profile.toml", 'key_file = "keys/me.key"'))
    key = profile.key()
    assert key is not None
    assert key.address == "cpc1w508d6qejxtdg4y5r3zarvary0c5xw7k32stzz"


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab", "00" * 32, "ff" * 32])
def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="does not hold a key") as caught:
        read_key(write(tmp_path / "k", text))
    assert not text or text not in caught.value.message
