from __future__ import annotations

from pathlib import Path

import pytest

from sd2rt.engines.bundle.cache import cache_dir, find_bundle, named_bundle
from sd2rt.engines.errors import BundleError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SD2RT_CACHE_DIR")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cache_is_the_users(home: Path) -> None:
    assert cache_dir() == home / ".cache" / "sd2rt"
    assert not (home / ".cache").exists()


def test_cache_can_be_chosen(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/user")
    assert cache_dir() == Path("/var/cache/user/sd2rt")
    monkeypatch.setenv("SD2RT_CACHE_DIR", "~/bundles of mine")
    assert cache_dir() == home / "bundles of mine"
    monkeypatch.setenv("SD2RT_CACHE_DIR", "")
    assert cache_dir() == Path("/var/cache/user/sd2rt")


@pytest.mark.parametrize("name", ["demo", "stable-diffusion-2-1", "a.b_c", "2"])
def test_name(name: str) -> None:
    assert named_bundle(name) == cache_dir() / "bundles" / name
    assert find_bundle(name) == cache_dir() / "bundles" / name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a b", "a\n", "ü", "a\0"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(BundleError, match="is not a valid bundle name"):
        named_bundle(name)


def test_folder_comes_before_a_name(home: Path) -> None:
    (home / "demo").mkdir()
    assert find_bundle("demo") == Path("demo")


@pytest.mark.parametrize("path", ["./demo", "shelf/demo", "/demo", "a b", "..", "x" * 300 + "/y"])
def test_path(path: str) -> None:
    assert find_bundle(path) == Path(path)


def test_path_object_is_never_a_name() -> None:
    assert find_bundle(Path("demo")) == Path("demo")


def test_home_is_expanded(home: Path) -> None:
    assert find_bundle("~/demo") == home / "demo"
    assert find_bundle("~nobody-of-that-name/demo") == Path("~nobody-of-that-name/demo")


def test_name_that_is_too_long_for_a_file() -> None:
    assert find_bundle("x" * 300) == cache_dir() / "bundles" / ("x" * 300)
