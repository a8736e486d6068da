"""The small checkpoint of tests/conftest.py in the other published forms, each written once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sd2rt.engines.kinds import Variant
from sd2rt.export.random_configs import SMALL, SMALLS
from sd2rt.export.random_weights import random_checkpoint

SEED = 1
"""What small_checkpoint is drawn with: equal weights in every form."""

KindPath = Callable[[Variant], Path]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def legacy_folder(checkpoints: Path) -> Path:
    return random_checkpoint(checkpoints / "legacy", configs=SMALL, seed=SEED, legacy_keys=True)


@pytest.fixture(scope="session")
def small_file(checkpoints: Path) -> Path:
    path = checkpoints / "small.safetensors"
    return random_checkpoint(path, configs=SMALL, seed=SEED, layout="ldm")


@pytest.fixture(scope="session")
def small_ckpt(checkpoints: Path) -> Path:
    return random_checkpoint(checkpoints / "small.ckpt", configs=SMALL, seed=SEED, layout="ldm")


@pytest.fixture(scope="session")
def small_configs(checkpoints: Path) -> Path:
    """A folder of SMALL's configuration files, without weights."""
    SMALL.write(checkpoints / "configs")
    return checkpoints / "configs"


@pytest.fixture(scope="session")
def kind_folder(request: pytest.FixtureRequest) -> KindPath:
    """The diffusers folder of a kind, of tests/conftest.py."""

    def folder(kind: Variant) -> Path:
        name = {"base": "small_checkpoint"}.get(kind, f"small_{kind}_checkpoint")
        return Path(request.getfixturevalue(name))

    return folder


@pytest.fixture(scope="session")
def kind_file(checkpoints: Path) -> KindPath:
    """The same weights as one file."""

    def file(kind: Variant) -> Path:
        path = checkpoints / f"{kind}.safetensors"
        return (
            path if path.exists() else random_checkpoint(path, configs=SMALLS[kind], seed=SEED, layout="ldm")
        )

    return file


@pytest.fixture
def folder_copy(small_checkpoint: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a copy of the small diffusers folder that a test may damage."""

    def copy() -> Path:
        return Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))

    return copy
