"""The small checkpoint of tests/conftest.py in the other published formats, each written once."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.weights.graph_archive import EXPORTERS
from sd2rt.export.checkpoints.tiny_configs import SMALL, SMALLS
from sd2rt.export.testing.random_weights import random_checkpoint

from ..made_once import MadeOnce

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

SEED = 1
"""Seed of small_checkpoint: all forms have the same weights."""

KindPath = Callable[[ModelKind], Path]


@pytest.fixture(scope="session")
def legacy_folder(made_once: MadeOnce) -> Path:
    return made_once(
        "checkpoints/legacy",
        lambda path: random_checkpoint(path, configs=SMALL, seed=SEED, legacy_keys=True),
    )


@pytest.fixture(scope="session")
def small_file(kind_file: KindPath) -> Path:
    return kind_file("base")


@pytest.fixture(scope="session")
def small_ckpt(made_once: MadeOnce) -> Path:
    return made_once(
        "checkpoints/small.ckpt", lambda path: random_checkpoint(path, configs=SMALL, seed=SEED, layout="ldm")
    )


@pytest.fixture(scope="session")
def small_configs(made_once: MadeOnce) -> Path:
    """A folder of SMALL's configuration files, without weights."""
    return made_once("checkpoints/configs", SMALL.write)


@pytest.fixture(scope="session")
def kind_folder(request: pytest.FixtureRequest) -> KindPath:
    """A kind's diffusers folder, from tests/conftest.py."""

    def folder(kind: ModelKind) -> Path:
        name = {"base": "small_checkpoint"}.get(kind, f"small_{kind}_checkpoint")
        return Path(request.getfixturevalue(name))

    return folder


@pytest.fixture(scope="session")
def kind_file(made_once: MadeOnce) -> KindPath:
    """A kind's weights as a single file."""

    def file(kind: ModelKind) -> Path:
        return made_once(
            f"checkpoints/{'small' if kind == 'base' else kind}.safetensors",
            lambda path: random_checkpoint(path, configs=SMALLS[kind], seed=SEED, layout="ldm"),
        )

    return file


@pytest.fixture(scope="session")
def pinned_exporters() -> None:
    """Skip unless the exporters in constraints.txt, which the packaged graphs were made with, are installed."""
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    for package in EXPORTERS:
        version = importlib.metadata.version(package).partition("+")[0]
        if pinned[package] != version:
            pytest.skip(
                f"the packaged graphs were made with {package} {pinned[package]}, but {version} is installed"
            )


@pytest.fixture
def folder_copy(small_checkpoint: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copy the small diffusers folder, for tests that damage it."""

    def copy() -> Path:
        return Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))

    return copy
