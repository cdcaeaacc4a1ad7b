"""Settings from the environment, also where a user has no home."""

import sys
from pathlib import Path

import pytest

from slidelens.errors import SlideLensError
from slidelens.settings import Settings, config_dir, get_settings


@pytest.fixture(autouse=True)
def fresh():
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know, as in a container that runs under another number."""

    def nobody(cls) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SLIDELENS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nobody))


def test_the_cache_is_where_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SLIDELENS_CACHE", str(tmp_path))
    assert get_settings().cache_dir == tmp_path


@pytest.mark.parametrize(
    ("system", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "there/slidelens"),
        ("linux", "", "home/.cache/slidelens"),
        ("win32", "LOCALAPPDATA", "there/slidelens"),
        ("darwin", "XDG_CACHE_HOME", "home/Library/Caches/slidelens"),
    ],
)
def test_else_it_is_in_the_place_of_the_system(monkeypatch, tmp_path, system, variable, expected):
    for name in ("SLIDELENS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "there"))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "home"))
    assert get_settings().cache_dir == tmp_path / expected


@pytest.mark.parametrize(
    ("system", "variable", "expected"),
    [
        ("linux", "XDG_CONFIG_HOME", "there/slidelens"),
        ("linux", "", "home/.config/slidelens"),
        ("win32", "APPDATA", "there/slidelens"),
        ("win32", "", "home/AppData/Roaming/slidelens"),
        ("darwin", "XDG_CONFIG_HOME", "home/Library/Application Support/slidelens"),
    ],
)
def test_what_the_user_decides_is_kept_apart(monkeypatch, tmp_path, system, variable, expected):
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "there"))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "home"))
    assert config_dir() == tmp_path / expected


@pytest.mark.parametrize("text", ["-2", "2.5", "many"])
def test_a_number_that_cannot_be_is_refused_with_those_that_can(monkeypatch, text):
    monkeypatch.setenv("SLIDELENS_THREADS", text)
    with pytest.raises(SlideLensError, match=f"SLIDELENS_THREADS is '{text}': .* 0 or more"):
        get_settings()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_only_what_needs_the_cache_is_refused():
    settings = get_settings()
    assert settings.models is None
    with pytest.raises(SlideLensError, match=r"no home folder .*: set SLIDELENS_CACHE"):
        _ = settings.cache_dir
    assert Settings(cache=Path("elsewhere")).cache_dir == Path("elsewhere")
