"""ONNX Runtime sessions on a simulated GPU: the CPU's values, asynchronous launches, graphs and threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import EngineError
from sd2rt.engines.onnxruntime.cuda_engine import OnnxRuntimeCudaEngine, OnnxRuntimeExecutable
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime import Pipeline

from ..simulated_gpu import Pace, SimulatedGpu
from ..step_inputs import CARRY, fill, run_steps
from .cuda_engines import open_on_cuda
from .simulated_cuda import CAPTURE_BROKEN, SimulatedCuda

DIMS = {"B": 2, "R": 4, "P": 1, "L": 77, "h": 8, "w": 8}


@pytest.fixture(scope="module")
def cpu(small_bundle: Path) -> Iterator[OnnxRuntimeEngine]:
    """The same graph on the CPU."""
    bundle = open_bundle(small_bundle)
    part = bundle.part("denoiser")
    with OnnxRuntimeEngine(part, bundle.file(part.onnx), threads=1) as engine:
        yield engine


Opened = tuple[SimulatedCuda, OnnxRuntimeCudaEngine]


@pytest.fixture
def on_gpu(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def open_denoiser(pace: Pace = "random", seed: int = 0, *, cuda_graph: bool = False) -> Opened:
        cuda = SimulatedCuda(SimulatedGpu(pace=pace, seed=seed))
        cuda.install(monkeypatch)
        context = open_on_cuda(small_bundle, "denoiser", cuda_graph=cuda_graph)
        contexts.append(context)
        return cuda, context.__enter__()

    yield open_denoiser
    for context in reversed(contexts):
        context.__exit__(None, None, None)


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize(("pace", "seed"), [("lazy", 0), ("eager", 0), ("random", 0), ("random", 1)])
def test_steps_are_those_of_the_cpu(
    on_gpu: Callable[..., Opened], cpu: OnnxRuntimeEngine, pace: Pace, seed: int, cuda_graph: bool
) -> None:
    cuda, engine = on_gpu(pace, seed, cuda_graph=cuda_graph)
    state, watched = run_steps(engine, DIMS, 9)
    expected, seen = run_steps(cpu, DIMS, 9)
    np.testing.assert_array_equal(state, expected)
    np.testing.assert_array_equal(watched, seen)
    counts = [cuda.gpu.counts[name] for name in ("capture", "graph launch", "run")]
    # Two runs precede a capture.
    assert counts == ([1, 9, 11] if cuda_graph else [0, 0, 9])


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_step_waits_for_nothing_and_sends_its_small_inputs_in_one_copy(
    on_gpu: Callable[..., Opened], cuda_graph: bool
) -> None:
    cuda, engine = on_gpu("eager", cuda_graph=cuda_graph)
    gpu = cuda.gpu
    session = engine.session(DIMS, CARRY, "finite")
    fill(session)
    for _ in range(3):
        session.launch()
    session.watched(wait=True)
    waits, copies, enqueues = gpu.waits, gpu.counts["copy"], gpu.counts["enqueue"]
    for _ in range(10):
        # At this size even the noise fits the block.
        for name in ("timestep", "update", "weights", "guidance", "row", "noise"):
            session.buffers[name].push()
        session.launch()
        assert len(session.watched(wait=False)) == 1
    assert gpu.waits == waits
    # The block, the state from output to input, and the finite flag.
    assert gpu.counts["copy"] - copies == 30
    assert gpu.counts["enqueue"] - enqueues == (0 if cuda_graph else 10)


def test_a_device_that_is_behind_is_not_waited_for(on_gpu: Callable[..., Opened]) -> None:
    cuda, engine = on_gpu("lazy")
    gpu = cuda.gpu
    session = engine.session(DIMS, CARRY, "finite")
    fill(session)
    waits = gpu.waits
    for _ in range(4):
        session.buffers["timestep"].push()
        session.launch()
        assert session.watched(wait=False) == []
    assert (gpu.waits, gpu.counts["run"]) == (waits, 0)
    assert len(session.watched(wait=True)) == 4


def test_launch_that_waits_is_found_out(
    on_gpu: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation detects the error that the tests above guard against."""
    create = OnnxRuntimeExecutable.__init__

    def synchronous(executable: Any, *given: Any, **options: Any) -> None:
        create(executable, *given, **options)
        executable._options.add_run_config_entry("disable_synchronize_execution_providers", "0")

    monkeypatch.setattr(OnnxRuntimeExecutable, "__init__", synchronous)
    with pytest.raises(AssertionError):
        test_a_step_waits_for_nothing_and_sends_its_small_inputs_in_one_copy(on_gpu, False)


@pytest.mark.parametrize("launches_before", [0, 1, 3])
def test_session_runs_on_another_thread(
    on_gpu: Callable[..., Opened], cpu: OnnxRuntimeEngine, launches_before: int
) -> None:
    """As in a server: opened on one thread and launched on another, which captures a graph of its own."""
    cuda, engine = on_gpu(cuda_graph=True)
    ends = []
    for each in (engine, cpu):
        session = each.session(DIMS, CARRY)
        fill(session)
        for _ in range(launches_before):
            session.launch()
        with ThreadPoolExecutor(1) as pool:
            for _ in range(4):
                pool.submit(session.launch).result()
            ends.append(pool.submit(session.buffers["state"].read).result())
    np.testing.assert_array_equal(ends[0], ends[1])
    assert cuda.gpu.counts["capture"] == (2 if launches_before else 1)


def test_every_new_thread_captures_undisturbed(on_gpu: Callable[..., Opened]) -> None:
    """Threads that follow one another may have the same number."""
    cuda, engine = on_gpu(cuda_graph=True)
    fill(session := engine.session(DIMS, CARRY))
    enabled: list[bool] = []
    cuda.during_capture = lambda: enabled.append(gc.isenabled())
    for _ in range(4):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(session.launch).result()
            pool.submit(session.launch).result()
    assert enabled == [False] * 4


@pytest.mark.parametrize("exclusive", [True, False])
def test_no_session_opens_during_a_capture(
    on_gpu: Callable[..., Opened], small_bundle: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    """Opening synchronises the device, which breaks captures in every thread."""
    cuda, engine = on_gpu(cuda_graph=True)
    session = engine.session(DIMS, CARRY)
    if not exclusive:
        monkeypatch.setattr("sd2rt.engines.onnxruntime.cuda_engine.EXCLUSIVE", threading.RLock())
    capturing, opened = threading.Event(), threading.Event()

    def slow() -> None:
        capturing.set()
        opened.wait(0.3)

    cuda.during_capture = slow
    failures: list[EngineError] = []
    bundle = open_bundle(small_bundle)
    part = bundle.part("decoder")

    def open_another() -> None:
        capturing.wait()
        try:
            OnnxRuntimeCudaEngine(part, bundle.file(part.onnx), engine.device, threads=1).close()
        except EngineError as error:
            failures.append(error)
        opened.set()

    thread = threading.Thread(target=open_another)
    thread.start()
    if exclusive:
        session.launch()
    else:
        with pytest.raises(EngineError, match="CUDA graph capture failed"):
            session.launch()
    thread.join()
    assert len(failures) == (0 if exclusive else 1)


def test_garbage_is_not_collected_during_a_capture(on_gpu: Callable[..., Opened]) -> None:
    """It may own memory of the device, which a capture must not free."""
    cuda, engine = on_gpu(cuda_graph=True)
    enabled = []
    cuda.during_capture = lambda: enabled.append(gc.isenabled())
    engine.session(DIMS, CARRY).launch()
    assert enabled == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("left_open", [True, False])
def test_broken_capture_is_ended_and_tried_again(
    on_gpu: Callable[..., Opened], cpu: OnnxRuntimeEngine, left_open: bool
) -> None:
    """The stream is usable afterwards, and the next launch captures under another graph id."""
    cuda, engine = on_gpu(cuda_graph=True)
    session = engine.session(DIMS, CARRY, "finite")
    (cuda.capturing if left_open else cuda.running).append(CAPTURE_BROKEN)
    with pytest.raises(
        EngineError,
        match=r"^denoiser at .*: CUDA graph capture failed \(CUDA failure 901: .*capture\): leave cuda_graph out$",
    ) as caught:
        session.launch()
    assert caught.value.exit_code == 5
    np.testing.assert_array_equal(run_steps(engine, DIMS, 4)[0], run_steps(cpu, DIMS, 4)[0])
    assert cuda.gpu.counts["capture"] == (2 if left_open else 1)


def test_other_errors_are_no_failed_captures(on_gpu: Callable[..., Opened]) -> None:
    cuda, engine = on_gpu(cuda_graph=True)
    session = engine.session(DIMS, CARRY)
    cuda.running.append("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : something else")
    with pytest.raises(EngineError, match="INVALID_ARGUMENT") as caught:
        session.launch()
    assert "capture" not in str(caught.value)
    session.launch()


def test_only_the_denoiser_is_captured(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other parts run once per image, and one of them has an operator without a CUDA kernel."""
    cuda = SimulatedCuda()
    cuda.install(monkeypatch)
    with Pipeline.open(small_bundle, device="cuda", threads=1, cuda_graph=True) as pipeline:
        for seed in range(2):
            pipeline("a fox", seed=seed, num_inference_steps=3, sampler="ddim")
    assert (cuda.gpu.counts["capture"], cuda.gpu.counts["graph launch"]) == (1, 6)


def test_replaced_weights(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sd2rt.engines.weights.initializers import Weights

    SimulatedCuda().install(monkeypatch)
    bundle = open_bundle(small_bundle)
    part = bundle.part("decoder")
    weights = Weights.of(part, bundle.file(part.onnx))
    name = next(name for name in weights if name.endswith("conv_in.weight"))
    images = []
    for replaced in (None, {name: 2 * weights.read(name)}):
        with open_on_cuda(small_bundle, "decoder", weights=replaced) as engine:
            session = engine.session({"B": 1, "h": 8, "w": 8})
            session.buffers["latents"].write(np.ones((1, 4, 8, 8), np.float32))
            session.launch()
            images.append(session.buffers["image"].read())
    assert np.abs(images[0] - images[1]).max() > 1e-3


def test_closed_engine(on_gpu: Callable[..., Opened]) -> None:
    _cuda, engine = on_gpu()
    session = engine.session(DIMS)
    engine.close()
    with pytest.raises(EngineError, match="denoiser on cuda:0 is closed: open it again"):
        engine.session(DIMS)
    with pytest.raises(EngineError, match="is closed: open its engine again"):
        session.launch()
