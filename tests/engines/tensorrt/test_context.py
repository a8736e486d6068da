"""Execution contexts: failures at creation and at launch, and graph capture."""

from __future__ import annotations

import numpy as np
import pytest

from sd2rt.engines.errors import EngineError

from ..simulated_tensorrt import make_tensorrt
from .engine_bench import DIMS, Bench, decode


def test_context_that_does_not_fit_the_device(bench: Bench) -> None:
    with (
        bench.open(bench.build(plan={"context_bytes": 2 * bench.gpu.total_bytes})) as engine,
        pytest.raises(EngineError, match=r"decoder at .* cannot be prepared: out of memory"),
    ):
        engine.session(DIMS)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_contexts_get_what_the_pool_keeps(bench: Bench, share: float) -> None:
    """The pool is trimmed once before a second attempt; a context that is still too large is an error."""
    bench.device.allocate(bench.gpu.total_bytes // 2, "a freed size").free()
    bench.device.synchronize()
    entry = bench.build(plan={"context_bytes": int(bench.gpu.free_bytes * share)})
    with bench.open(entry) as engine:
        if share < 1:
            assert np.isfinite(decode(engine)).all()
        else:
            with pytest.raises(EngineError, match="cannot be prepared: out of memory"):
                engine.session(DIMS)
    assert (bench.gpu.counts["trim"], bench.gpu.counts["create context"]) == (1, 2)


def test_enqueue_that_fails_says_why(bench: Bench) -> None:
    entry = bench.build(plan={"enqueue_fails": "IExecutionContext::enqueueV3: Error Code 3: API Usage"})
    with (
        bench.open(entry) as engine,
        pytest.raises(EngineError, match=r"the execution cannot be enqueued: IExec.* API Usage$"),
    ):
        decode(engine)


def test_fault_on_the_device_ends_the_process_work(bench: Bench) -> None:
    entry = bench.build(plan={"fault": "CUDA_ERROR_ILLEGAL_ADDRESS"})
    engine = bench.open(entry)
    with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"):
        decode(engine)
    with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"):
        engine.session({**DIMS, "B": 2})
    engine.close()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_not_capturable(bench: Bench, name: str) -> None:
    """TensorRT for RTX reports it: sd2rt warns once and runs without a graph."""
    module = make_tensorrt(bench.gpu, name)
    backend = name.replace("_", "-")
    with bench.open(
        bench.build(module=module, backend=backend, plan={"not_capturable": True}), module
    ) as engine:
        expected = decode(engine)
        if name == "tensorrt_rtx":
            with pytest.warns(UserWarning, match="CUDA graph capture failed") as said:
                found = [decode(engine) for _ in range(3)]
            assert len(said) == 1
        else:
            found = [decode(engine) for _ in range(3)]
    assert bench.gpu.counts["graph launch"] == (0 if name == "tensorrt_rtx" else 3)
    for image in found:
        np.testing.assert_array_equal(image, expected)


def test_not_capturable_and_a_graph_was_asked_for(bench: Bench) -> None:
    module = make_tensorrt(bench.gpu, "tensorrt_rtx")
    entry = bench.build(module=module, backend="tensorrt-rtx", plan={"not_capturable": True})
    with bench.open(entry, module, cuda_graph=True) as engine:
        decode(engine)
        with pytest.raises(EngineError, match=r"CUDA graph capture failed: leave cuda_graph out"):
            decode(engine)


def test_without_graphs(bench: Bench) -> None:
    with bench.open(bench.build(), cuda_graph=False) as engine:
        images = [decode(engine) for _ in range(3)]
    np.testing.assert_array_equal(images[0], images[2])
    assert bench.gpu.counts["capture"] == 0
