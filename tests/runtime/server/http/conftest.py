"""Servers that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving.server_process import Server
from sd2rt.engines.demo.build import build_demo

NAMES = ("demo", "demo-inpaint", "demo-depth", "demo-x4")
MAX_BODY_MB = 2


@pytest.fixture(scope="session")
def demo_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's bundles by name, in folders of these names: that is how requests name them."""
    folders = {name: tmp_path_factory.getbasetemp() / "served" / name for name in NAMES}
    for name, folder in folders.items():
        build_demo(name, folder)
    return folders


@pytest.fixture(scope="session")
def demo_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA file for the demo."""
    from ....lora_files import ATTENTION, demo_shapes, draw, write

    return write(
        tmp_path_factory.mktemp("lora") / "ink.safetensors", "kohya", draw(ATTENTION, demo_shapes(), seed=1)
    )


@pytest.fixture(scope="session")
def demo_server(demo_folders: dict[str, Path]) -> Iterator[Server]:
    """A server of the demo's bundles, without keys; nothing that a test does to it may last."""
    with Server(
        *demo_folders.values(), "--max-body-mb", str(MAX_BODY_MB), "--max-steps", "50", "--max-side", "256"
    ) as server:
        yield server
        assert server.stop() == 0
