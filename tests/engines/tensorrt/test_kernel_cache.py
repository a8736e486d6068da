"""Kernels of TensorRT for RTX are cached across processes, and compiled before a graph captures them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.cache import cache_dir

from ..simulated_tensorrt import make_tensorrt
from .engine_bench import DIMS, Bench, decode


def test_kernel_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    module = make_tensorrt(bench.gpu, "tensorrt_rtx", "1.7.1.116")
    entry = bench.build(module=module, backend="tensorrt-rtx")
    expected = cache_dir() / "kernels" / f"{entry.file.sha256}-Simulated-GPU-1-580.65.06.bin"

    def run(size: dict[str, int]) -> Any:
        with bench.open(entry, module) as engine:
            decode(engine, size)
            assert engine._kernels is not None
            return engine._kernels._cache.known

    assert run(DIMS) == frozenset()
    assert [path.name for path in expected.parent.iterdir()] == [expected.name]
    first = expected.read_bytes()
    assert len(run(DIMS)) == 1
    assert expected.read_bytes() == first
    assert len(run({"B": 1, "h": 8, "w": 16})) == 1
    assert len(run(DIMS)) == 2
    # An unreadable cache is replaced, and a cache that cannot be written is ignored.
    expected.write_bytes(b"garbage")
    assert run(DIMS) == frozenset()
    assert expected.read_bytes() == first
    expected.unlink()
    expected.mkdir()
    assert run(DIMS) == frozenset()


def test_kernels_are_kept_of_a_process_that_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    module = make_tensorrt(bench.gpu, "tensorrt_rtx", "1.7.1.116")
    entry = bench.build(module=module, backend="tensorrt-rtx")
    with bench.open(entry, module) as engine:
        decode(engine)
        (path,) = (cache_dir() / "kernels").iterdir()
        first = path.stat()
        decode(engine)
        decode(engine)
        assert path.stat() == first


def test_kernels_are_compiled_before_they_are_captured(bench: Bench) -> None:
    module = make_tensorrt(bench.gpu, "tensorrt_rtx")
    entry = bench.build(module=module, backend="tensorrt-rtx")
    with bench.open(entry, module) as engine:
        session: Any = engine.session(DIMS)
        config = session._executable._context.config
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        assert config.cuda_graph_strategy.name == "DISABLED"
