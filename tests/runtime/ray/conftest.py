"""Ray with applications, that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving.ray_cluster import RayCluster
from sd2rt.engines.demo.build import build_demo

from ...lora_files import ATTENTION, demo_shapes, draw, write

KEY = "a-key-for-tests"
MAX_QUEUE = 4
RULES = """
def refuse(image):
    return True
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, a LoRA, a file of keys, and a module with a safety check."""
    folder = tmp_path_factory.mktemp("ray")
    for name in ("demo", "demo-v"):
        build_demo(name, folder / name)
    write(folder / "ink.safetensors", "kohya", draw(ATTENTION, demo_shapes(), seed=1))
    (folder / "keys").write_text(KEY)
    (folder / "rules.py").write_text(RULES)
    return folder


@pytest.fixture(scope="module")
def ray_cluster(folder: Path) -> Iterator[RayCluster]:
    """Ray without applications. Tests that use it are one group, so that one worker of pytest-xdist starts Ray."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra ray)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with RayCluster() as cluster:
            yield cluster


@pytest.fixture(scope="module")
def served(ray_cluster: RayCluster, folder: Path) -> RayCluster:
    """The application `main`, of one replica with two bundles, keys, a LoRA and the watermark."""
    ray_cluster.deploy(
        "main",
        bundle=f"{folder / 'demo'},{folder / 'demo-v'}",
        api_key_file=str(folder / "keys"),
        lora=f"ink={folder / 'ink.safetensors'}",
        watermark="sdv2",
        max_queue=str(MAX_QUEUE),
        max_steps=1000,
        num_cpus=0.5,
    )
    return ray_cluster
