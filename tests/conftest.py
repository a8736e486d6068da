"""Checkpoints and bundles that tests share; each is made at most once, when a test first asks for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sd2rt.export.pipeline_configs import PipelineConfigs

_THREADS = 2


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SD2RT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SD2RT_DEBUG", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    # Children take the variable, this process the call: torch may have been imported already.
    os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(_THREADS)


@pytest.fixture
def launched_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each of the denoiser's calls evaluates, as they are made."""
    from sd2rt.engines.ort import OnnxRuntimeSession

    rows: list[int] = []
    launch = OnnxRuntimeSession.launch

    def counted(self: OnnxRuntimeSession) -> None:
        if "row" in self.buffers:
            rows.append(len(self.buffers["row"].host))
        launch(self)

    monkeypatch.setattr(OnnxRuntimeSession, "launch", counted)
    return rows


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of SD2's smallest architecture: 64x64 pixels, epsilon prediction, PNDM."""
    from sd2rt.export.random_configs import SMALL

    return _checkpoint(tmp_path_factory.mktemp("checkpoints") / "small", SMALL)


@pytest.fixture(scope="session")
def small_v_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with v prediction and DDIM."""
    from sd2rt.export.random_configs import SMALL_V

    return _checkpoint(tmp_path_factory.mktemp("checkpoints") / "small-v", SMALL_V)


@pytest.fixture(scope="session")
def small_turbo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as SD-Turbo, which only its folder's name says: Euler, trailing timesteps."""
    from sd2rt.export.random_configs import SMALL_TURBO

    return _checkpoint(tmp_path_factory.mktemp("checkpoints") / "sd-turbo", SMALL_TURBO)


@pytest.fixture(scope="session")
def small_inpainting_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a mask and what it leaves as further channels."""
    from sd2rt.export.random_configs import SMALL_INPAINTING

    return _checkpoint(tmp_path_factory.mktemp("checkpoints") / "small-inpainting", SMALL_INPAINTING)


@pytest.fixture(scope="session")
def small_depth_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a depth map as further channel, and a depth estimator of 384x384 pixels."""
    from sd2rt.export.random_configs import SMALL_DEPTH

    return _checkpoint(tmp_path_factory.mktemp("checkpoints") / "small-depth", SMALL_DEPTH)


@pytest.fixture(scope="session")
def small_upscaler_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upscaler from 16x16 to 64x64 pixels: v prediction, DDIM, a VAE of 4 pixels per latent."""
    from sd2rt.export.random_configs import SMALL_UPSCALER

    return _checkpoint(tmp_path_factory.mktemp("checkpoints") / "small-upscaler", SMALL_UPSCALER)


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of :func:`small_checkpoint`. Read only: copy it before damaging it."""
    return _bundle(str(small_checkpoint), tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="session")
def small_v_bundle(small_v_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of :func:`small_v_checkpoint`. Read only."""
    return _bundle(str(small_v_checkpoint), tmp_path_factory.mktemp("bundles") / "small-v")


@pytest.fixture(scope="session")
def small_turbo_bundle(small_turbo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of :func:`small_turbo_checkpoint`. Read only."""
    return _bundle(str(small_turbo_checkpoint), tmp_path_factory.mktemp("bundles") / "small-turbo")


@pytest.fixture(scope="session")
def small_inpainting_bundle(
    small_inpainting_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The fp32 bundle of :func:`small_inpainting_checkpoint`. Read only."""
    return _bundle(str(small_inpainting_checkpoint), tmp_path_factory.mktemp("bundles") / "small-inpainting")


@pytest.fixture(scope="session")
def small_depth_bundle(small_depth_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of :func:`small_depth_checkpoint`. Read only."""
    return _bundle(str(small_depth_checkpoint), tmp_path_factory.mktemp("bundles") / "small-depth")


@pytest.fixture(scope="session")
def small_upscaler_bundle(small_upscaler_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of :func:`small_upscaler_checkpoint`. Read only."""
    return _bundle(str(small_upscaler_checkpoint), tmp_path_factory.mktemp("bundles") / "small-upscaler")


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that ``sd2rt build demo`` makes: 128x128 pixels. Read only."""
    return _bundle("demo", tmp_path_factory.mktemp("bundles") / "demo")


def _checkpoint(path: Path, configs: PipelineConfigs) -> Path:
    from sd2rt.export.random_weights import random_checkpoint

    return random_checkpoint(path, configs=configs, seed=1)


def _bundle(checkpoint: str, target: Path) -> Path:
    import torch

    from sd2rt.export.build import build
    from sd2rt.export.checkpoint import open_checkpoint

    torch.set_num_threads(_THREADS)
    return build(open_checkpoint(checkpoint), target).path
