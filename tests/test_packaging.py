"""What is installed: the wheel and the sdist hold the packages of the checkout, whole, and nothing else."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest

from .wheels import ROOT, built_sdist, built_wheel, tracked_files

PACKAGES = ("engines", "export", "runtime")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer does."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def package_files() -> set[str]:
    """Every file of the packages in the checkout, as it is named where sd2rt is installed."""
    own = {f"sd2rt/{name}" for name in ("__init__.py", "__main__.py", "launch.py", "py.typed")}
    return own | {f"sd2rt/{name}" for name in tracked_files() if name.split("/")[0] in PACKAGES}


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    information = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - information == package_files()


def test_the_wheel_records_its_files(wheel: Path) -> None:
    """Every file but the record itself, with its SHA-256 and its size, as pip checks them."""
    with zipfile.ZipFile(wheel) as archive:
        [record] = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        rows = {name: told for name, *told in csv.reader(archive.read(record).decode().splitlines())}
        assert rows.pop(record) == ["", ""]
        assert rows.keys() == set(archive.namelist()) - {record}
        for name, (digest, size) in rows.items():
            content = archive.read(name)
            encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={encoded}", str(len(content))), name


def test_the_sdist_holds_the_tree(tmp_path: Path) -> None:
    with tarfile.open(built_sdist(tmp_path)) as archive:
        names = {member.name.partition("/src/")[2] for member in archive.getmembers() if member.isfile()}
    assert {name for name in names if name.startswith("sd2rt/")} == package_files()


def test_the_sdist_builds_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """An installer that takes the sdist gets the same files."""
    with tarfile.open(built_sdist(tmp_path)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (tree,) = (tmp_path / "source").iterdir()
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    child = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    with zipfile.ZipFile(tmp_path / child.stdout.splitlines()[-1]) as built, zipfile.ZipFile(wheel) as direct:
        assert set(built.namelist()) == set(direct.namelist())
        (metadata,) = (name for name in built.namelist() if name.endswith(".dist-info/METADATA"))
        text = built.read(metadata).decode()
    assert "Project-URL: Homepage, https://" in text
    assert "License-Expression: Apache-2.0" in text


def test_every_room_says_what_it_is_for_where_it_is_installed(installed: Path) -> None:
    for package in PACKAGES:
        for module in (installed / "sd2rt" / package).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module.parent


@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_a_wheel_works_in_and_outside_of_the_checkout(installed: Path, tmp_path: Path, place: str) -> None:
    code = (
        "import sd2rt, sd2rt.runtime.cli.main, sd2rt.engines.demo.files as demo\n"
        "print(sd2rt.__file__); print(sd2rt.Pipeline.__name__, len(list(demo.GRAPHS.iterdir())))"
    )
    # The working directory comes first, as it does for `python -m`; an editable install comes last.
    paths = [installed, Path(numpy.__file__).parents[1]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    folder = ROOT if place == "checkout" else tmp_path
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    graphs = len(list((ROOT / "engines" / "demo" / "graphs").iterdir()))
    assert child.stdout.splitlines() == [str(installed / "sd2rt" / "__init__.py"), f"Pipeline {graphs}"]


def test_a_wheel_draws_without_export(installed: Path, tmp_path: Path) -> None:
    """The packaged data is whole: the demo is built and run with what the extra `cpu` installs."""
    code = (
        "import sys\n"
        "for package in ('torch', 'diffusers', 'transformers', 'onnx', 'onnxscript', 'onnx_ir', 'safetensors'):\n"
        "    sys.modules[package] = None\n"
        "from sd2rt.runtime.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    paths = [installed, Path(numpy.__file__).parents[1]]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "SD2RT_CACHE_DIR": str(tmp_path / "cache"),
    }
    words = ("run", "a red circle", "--steps", "1", "--seed", "3", "--quiet")
    child = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert (tmp_path / "3.png").is_file()
