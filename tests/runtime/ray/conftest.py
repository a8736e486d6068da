"""Ray on this machine, once for each module that uses it: for jobs, and with applications."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.ray_cluster import RayCluster
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime.ray.session import import_ray

from ...lora_files import ATTENTION, demo_shapes, draw, write

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]

KEY = "a-key-for-tests"
MAX_QUEUE = 4
RULES = """
def refuse(image):
    return True
"""


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Any]:
    """The `ray` module, connected to processes of this machine that start its actors."""
    ray = import_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=80 * 1024**2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


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
