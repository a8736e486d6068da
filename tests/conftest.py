"""Checkpoints and bundles that tests share; each is made at most once, when a test first asks for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .made_once import MadeOnce
from .order import number, share_out
from .parity.table import TABLE_VARIABLE, Table

if TYPE_CHECKING:
    from sd2rt.engines.bundle.schema import Precision
    from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs

INEXACT_TORCH = "SD2RT_TESTS_INEXACT_TORCH"
"""Environment variable that gives a session the torch of :mod:`inexact_torch`."""
SHARED = "SD2RT_TESTS_SHARED"
"""Environment variable with the folder of what tests share, where a session that a test started has its parent's."""

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, min(2, len(os.sched_getaffinity(0)) // _WORKERS))
"""Of PyTorch in this process: two where it has them to itself."""


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A background job of a shell ignores the signal, and so would the commands that tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if INEXACT_TORCH in os.environ:
        from .inexact_torch import install

        install()
    if (target := os.environ.get(TABLE_VARIABLE)) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(Path(target)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number(items)
    if hasattr(config, "workerinput"):
        from .group_scheduling import tell

        tell(share_out(items), config)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes by their number: an archive's hold the time of its making, and processes must agree on the names."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from .group_scheduling import GroupScheduling

    return GroupScheduling(config, log) if config.option.dist == "load" else None


@pytest.fixture(scope="session", autouse=True)
def _own_cache(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing reads or writes the user's cache. Exported graphs are shared by all workers."""
    cache = tmp_path_factory.mktemp("cache")
    graphs = made_once.shared / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    (cache / "graphs").symlink_to(graphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SD2RT_CACHE_DIR", str(cache))
        for name in ("DEBUG", "DEVICE", "BACKEND", "PRECISION", "THREADS"):
            patch.delenv(f"SD2RT_{name}", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    # Children take the variable, this process the call: torch may have been imported already.
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(THREADS)


@pytest.fixture
def launched_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each of the denoiser's calls evaluates, as they are made."""
    from sd2rt.engines.onnxruntime.engine import OnnxRuntimeSession

    rows: list[int] = []
    launch = OnnxRuntimeSession.launch

    def counted(self: OnnxRuntimeSession) -> None:
        if "row" in self.buffers:
            rows.append(len(self.buffers["row"].host))
        launch(self)

    monkeypatch.setattr(OnnxRuntimeSession, "launch", counted)
    return rows


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    base = tmp_path_factory.getbasetemp()
    # A worker's folder is in that of the session which started it.
    session = base.parent if hasattr(request.config, "workerinput") else base
    shared = Path(os.environ.get(SHARED, session / "shared"))
    return MadeOnce(shared, tmp_path_factory.mktemp("unfinished"))


@pytest.fixture(scope="session")
def small_checkpoint(made_once: MadeOnce) -> Path:
    """A diffusers folder of SD2's smallest architecture: 64x64 pixels, epsilon prediction, PNDM."""
    from sd2rt.export.checkpoints.tiny_configs import SMALL

    return _checkpoint(made_once, "small", SMALL)


@pytest.fixture(scope="session")
def small_v_checkpoint(made_once: MadeOnce) -> Path:
    """The same with v prediction and DDIM."""
    from sd2rt.export.checkpoints.tiny_configs import SMALL_V

    return _checkpoint(made_once, "small-v", SMALL_V)


@pytest.fixture(scope="session")
def small_turbo_checkpoint(made_once: MadeOnce) -> Path:
    """The same as SD-Turbo, which only its folder's name says: Euler, trailing timesteps."""
    from sd2rt.export.checkpoints.tiny_configs import SMALL_TURBO

    return _checkpoint(made_once, "sd-turbo", SMALL_TURBO)


@pytest.fixture(scope="session")
def small_inpainting_checkpoint(made_once: MadeOnce) -> Path:
    """The same with a mask and what it leaves as further channels."""
    from sd2rt.export.checkpoints.tiny_configs import SMALL_INPAINTING

    return _checkpoint(made_once, "small-inpainting", SMALL_INPAINTING)


@pytest.fixture(scope="session")
def small_depth_checkpoint(made_once: MadeOnce) -> Path:
    """The same with a depth map as further channel, and a depth estimator of 384x384 pixels."""
    from sd2rt.export.checkpoints.tiny_configs import SMALL_DEPTH

    return _checkpoint(made_once, "small-depth", SMALL_DEPTH)


@pytest.fixture(scope="session")
def small_upscaler_checkpoint(made_once: MadeOnce) -> Path:
    """An upscaler from 16x16 to 64x64 pixels: v prediction, DDIM, a VAE of 4 pixels per latent."""
    from sd2rt.export.checkpoints.tiny_configs import SMALL_UPSCALER

    return _checkpoint(made_once, "small-upscaler", SMALL_UPSCALER)


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The fp32 bundle of :func:`small_checkpoint`. Read only: copy it before damaging it."""
    return _bundle(made_once, str(small_checkpoint), "small")


@pytest.fixture(scope="session")
def earlier_bundle(small_bundle: Path, made_once: MadeOnce) -> Path:
    """A bundle as earlier versions wrote it, whose denoiser takes latents in multiples of 8."""

    def make(target: Path) -> None:
        shutil.copytree(small_bundle, target)
        path = target / "bundle.json"
        data = json.loads(path.read_text())
        del data["latents"]["side_multiple"], data["checksum"]
        path.write_text(json.dumps(data))

    return made_once("earlier-bundle", make)


@pytest.fixture(scope="session")
def small_v_bundle(small_v_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The fp32 bundle of :func:`small_v_checkpoint`. Read only."""
    return _bundle(made_once, str(small_v_checkpoint), "small-v")


@pytest.fixture(scope="session")
def small_turbo_bundle(small_turbo_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The fp32 bundle of :func:`small_turbo_checkpoint`. Read only."""
    return _bundle(made_once, str(small_turbo_checkpoint), "small-turbo")


@pytest.fixture(scope="session")
def small_inpainting_bundle(small_inpainting_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The fp32 bundle of :func:`small_inpainting_checkpoint`. Read only."""
    return _bundle(made_once, str(small_inpainting_checkpoint), "small-inpainting")


@pytest.fixture(scope="session")
def small_depth_bundle(small_depth_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The fp32 bundle of :func:`small_depth_checkpoint`. Read only."""
    return _bundle(made_once, str(small_depth_checkpoint), "small-depth")


@pytest.fixture(scope="session")
def small_upscaler_bundle(small_upscaler_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The fp32 bundle of :func:`small_upscaler_checkpoint`. Read only."""
    return _bundle(made_once, str(small_upscaler_checkpoint), "small-upscaler")


@pytest.fixture(scope="session")
def demo_half_bundle(made_once: MadeOnce) -> Path:
    """The demo's networks in fp16: 128x128 pixels, heads of 16, the narrowest with attention kernels. Read only."""
    from sd2rt.export.checkpoints.tiny_configs import DEMO

    return _bundle(made_once, str(_checkpoint(made_once, "demo", DEMO)), "demo-half", "fp16")


@pytest.fixture(scope="session")
def trained_bundle(made_once: MadeOnce) -> Callable[[str, Precision], Path]:
    """A bundle of the demo's trained family, by name and precision: built of packaged graphs. Read only."""
    return lambda name, precision: _bundle(made_once, name, f"trained-{name}-{precision}", precision)


@pytest.fixture(scope="session")
def small_half_bundle(small_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The fp16 bundle of :func:`small_checkpoint`. Read only."""
    return _bundle(made_once, str(small_checkpoint), "small-half", "fp16")


def _checkpoint(made_once: MadeOnce, name: str, configs: PipelineConfigs) -> Path:
    from sd2rt.export.testing.random_weights import random_checkpoint

    return made_once(f"checkpoints/{name}", lambda path: random_checkpoint(path, configs=configs, seed=1))


def _bundle(made_once: MadeOnce, checkpoint: str, name: str, precision: Precision = "fp32") -> Path:
    import torch

    from sd2rt.export.build import build
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint

    torch.set_num_threads(THREADS)
    return made_once(
        f"bundles/{name}", lambda path: build(open_checkpoint(checkpoint), path, precision=precision)
    )
