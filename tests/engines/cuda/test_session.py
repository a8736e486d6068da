"""Sessions on a simulated GPU compute the same values as ONNX Runtime sessions on the CPU."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import EngineError
from sd2rt.engines.interface import Engine, Session
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.tensorrt.context import TensorRtContext
from sd2rt.engines.tensorrt.engine import TensorRtEngine

from ..simulated_gpu import Pace, SimulatedGpu
from ..simulated_tensorrt import build, make_tensorrt
from ..step_inputs import CARRY, fill, run_steps

SIZES = {
    "B": (1, 2, 8),
    "R": (1, 4, 16),
    "P": (1, 1, 3),
    "L": (77, 77, 154),
    "h": (8, 8, 16),
    "w": (8, 8, 16),
}


def dims(batch: int, **others: int) -> dict[str, int]:
    return {"B": batch, "R": 2 * batch, "P": 1, "L": 77, "h": 8, "w": 8} | others


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> tuple[Path, Manifest]:
    opened = open_bundle(small_bundle)
    return opened.path, opened.manifest


@pytest.fixture(scope="module")
def cpu(bundle: tuple[Path, Manifest]) -> Iterator[OnnxRuntimeEngine]:
    part = bundle[1].parts["denoiser"]
    with OnnxRuntimeEngine(part, bundle[0] / part.onnxruntime, threads=1) as engine:
        yield engine


Open = Callable[..., tuple[SimulatedGpu, TensorRtEngine]]


@pytest.fixture
def on_gpu(bundle: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the denoiser's engine on a simulated GPU."""
    opened: list[Any] = []

    def open_engine(
        pace: Pace = "random", seed: int = 0, **options: Any
    ) -> tuple[SimulatedGpu, TensorRtEngine]:
        gpu = SimulatedGpu(pace=pace, seed=seed)
        gpu.install(monkeypatch)
        device, module = CudaDevice(), make_tensorrt(gpu)
        part = bundle[1].parts["denoiser"]
        entry = build(tmp_path, "denoiser", part, bundle[0] / part.onnxruntime, [SIZES], module=module)
        engine = TensorRtEngine(part, entry, tmp_path, device, module, **options)
        opened.extend((device, engine))
        return gpu, engine

    yield open_engine
    for thing in reversed(opened):
        thing.close()


def run(engine: Engine, batch: int, steps: int, *, wait: bool = False) -> tuple[Any, list[Any]]:
    return run_steps(engine, dims(batch), steps, wait=wait)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("pace", "seed"), [("lazy", 0), ("eager", 0), ("random", 0), ("random", 1)])
def test_steps_are_those_of_the_cpu(
    on_gpu: Open, cpu: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch, pace: Pace, seed: int, small: bool
) -> None:
    """Bit for bit, at every pace of the device; the rings of all pushed inputs wrap."""
    if not small:
        monkeypatch.setattr("sd2rt.engines.cuda.session.SMALL_BYTES", 100)
    gpu, engine = on_gpu(pace, seed)
    found, watched = run(engine, 2, 11)
    expected, seen = run(cpu, 2, 11)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(expected).all()
    assert len(watched) == 11
    np.testing.assert_array_equal(watched, seen)
    assert gpu.counts["capture"] == 1
    assert gpu.counts["graph launch"] == 10
    assert gpu.counts["run"] == 11


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(
            {"sd2rt.engines.cuda.memory.Slot.wait": lambda self: None}, id="slots are not waited for"
        ),
        pytest.param(
            {"sd2rt.engines.cuda.memory.Slot.wait": lambda self: None, "sd2rt.engines.cuda.buffers.AHEAD": 1},
            id="one slot, not waited for",
        ),
        pytest.param(
            {"sd2rt.engines.cuda.session.CudaSession._bind_workspace": lambda self: None}, id="no arena"
        ),
        pytest.param({"sd2rt.engines.cuda.buffers.Block.send": lambda self: None}, id="nothing is sent"),
        pytest.param(
            {"sd2rt.engines.cuda.device.CudaDevice.synchronize": lambda self: None}, id="read too early"
        ),
    ],
)
def test_what_is_broken_is_found_out(
    on_gpu: Open, cpu: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]
) -> None:
    """The simulation detects the errors that the test above guards against."""
    _gpu, engine = on_gpu("lazy")
    with monkeypatch.context() as patch:
        for name, value in broken.items():
            patch.setattr(name, value)
        try:
            found, _ = run(engine, 2, 11)
        except EngineError:
            return
    assert not np.array_equal(found, run(cpu, 2, 11)[0])


def test_carry_that_is_left_out_of_the_graph_is_found_out(
    on_gpu: Open, cpu: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpu, engine = on_gpu()
    session: Any = engine.session(dims(2), CARRY, "finite")
    session._carried.clear()
    assert not np.array_equal(run(engine, 2, 3)[0], run(cpu, 2, 3)[0])


def test_a_device_that_keeps_up_is_never_waited_for(on_gpu: Open) -> None:
    gpu, engine = on_gpu("eager")
    session = engine.session(dims(2), CARRY, "finite")
    fill(session, 0)
    before = gpu.waits
    for _ in range(20):
        session.buffers["noise"].push()
        session.buffers["timestep"].push()
        session.launch()
        assert len(session.watched(wait=False)) == 1
    assert gpu.waits == before


@pytest.mark.parametrize("launches", [4, 5, 11])
def test_a_device_that_is_behind_is_waited_for_by_a_full_ring_alone(on_gpu: Open, launches: int) -> None:
    gpu, engine = on_gpu("lazy")
    session = engine.session(dims(2), CARRY, "finite")
    fill(session, 0)
    before = gpu.waits
    for _ in range(launches):
        session.buffers["timestep"].push()
        session.launch()
        assert session.watched(wait=False) == [] or launches > 4
    assert gpu.waits - before <= max(0, launches - 4) * 2
    if launches == 4:
        assert gpu.waits == before
        assert gpu.counts["run"] == 0


def test_inputs_that_are_not_pushed_again_stay(on_gpu: Open, cpu: OnnxRuntimeEngine) -> None:
    found = []
    for engine in (on_gpu()[1], cpu):
        session = engine.session(dims(1), CARRY)
        fill(session, 1)
        for _ in range(3):
            session.launch()
        found.append(session.buffers["state"].read())
    np.testing.assert_array_equal(found[0], found[1])


def test_what_was_never_written_is_zero(on_gpu: Open, cpu: OnnxRuntimeEngine) -> None:
    found = []
    for engine in (on_gpu()[1], cpu):
        session = engine.session(dims(1))
        session.buffers["update"].write(np.full((1, 5, 7), 0.1, np.float32))
        session.buffers["shares"].write(np.ones((1, 1), np.float32))
        session.launch()
        found.append(session.buffers["state_out"].read())
        assert not session.buffers["noise"].read().any()
        assert not session.buffers["text"].pull().any()
    np.testing.assert_array_equal(found[0], found[1])


def test_buffers(on_gpu: Open, cpu: OnnxRuntimeEngine) -> None:
    session, other = (engine.session(dims(2), CARRY) for engine in (on_gpu()[1], cpu))
    assert {n: (b.shape, b.dtype) for n, b in session.buffers.items()} == {
        n: (b.shape, b.dtype) for n, b in other.buffers.items()
    }
    for name in ("state", "timestep"):
        buffer = session.buffers[name]
        value = np.random.default_rng(0).standard_normal(buffer.shape).astype(np.float32)
        buffer.write(value)
        read = buffer.read()
        np.testing.assert_array_equal(read, value)
        read[:] = 0
        np.testing.assert_array_equal(buffer.pull(), value)
        with pytest.raises(ValueError, match="was written to a buffer of"):
            buffer.write(value[:1])


@pytest.mark.parametrize("name", ["state", "noise", "text"])
def test_some_rows_are_pushed(on_gpu: Open, cpu: OnnxRuntimeEngine, name: str) -> None:
    """Rows that are not pushed keep their contents, in large and small buffers."""
    for engine in (on_gpu()[1], cpu):
        buffer = engine.session(dims(8), CARRY).buffers[name]
        value = np.random.default_rng(0).standard_normal(buffer.shape).astype(np.float32)
        buffer.write(value)
        for rows in (slice(2, 4), slice(0, 1), slice(5, 5), slice(7, None)):
            value[rows] += 1
            buffer.host[rows] = value[rows]
            buffer.push(rows)
        np.testing.assert_array_equal(buffer.read(), value)


TAKES = [
    [(0, 0), (1, 1)],
    [(1, 0), (2, 1), (3, 2)],
    [(0, 1), (1, 2), (2, 3)],
    [(2, 0), (3, 1)],
    [(3, 0), (0, 3)],
    [(2, 0), (2, 1), (0, 2)],
    [],
]


@pytest.mark.parametrize("rows", TAKES, ids=str)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ["state", "timestep"])
def test_take(
    on_gpu: Open, cpu: OnnxRuntimeEngine, rows: list[tuple[int, int]], own: bool, name: str
) -> None:
    """Overlapping rows of one buffer are all read before they are written; nothing waits for the device."""
    gpu, gpu_engine = on_gpu("random")
    for engine in (gpu_engine, cpu):
        session = engine.session(dims(4), CARRY)
        target = session.buffers[name]
        source = target if own else engine.session(dims(5), CARRY).buffers[name]
        for buffer in {target, source}:
            buffer.write(
                np.random.default_rng(len(buffer.host)).standard_normal(buffer.shape).astype(np.float32)
            )
        values, taken = target.read(), source.read()
        waits, allocations = gpu.waits, gpu.counts["allocate"]
        target.take(source, rows)
        assert gpu.waits == waits
        if all(a >= b for a, b in rows):
            # Entries that move up, as when others leave a batch, need no scratch memory.
            assert gpu.counts["allocate"] == allocations
        for a, b in rows:
            values[b] = taken[a]
        np.testing.assert_array_equal(target.read(), values)
    with pytest.raises((ValueError, IndexError)):
        gpu_engine.session(dims(4), CARRY).buffers["state"].take(session.buffers["noise"], [(0, 0)])


def test_a_state_moves_with_what_was_launched_before(on_gpu: Open, cpu: OnnxRuntimeEngine) -> None:
    """Between sessions, in stream order, without waiting."""
    ends = []
    gpu, engine = on_gpu("random", 3)
    for each in (engine, cpu):
        first, second = each.session(dims(3), CARRY, "finite"), each.session(dims(2), CARRY, "finite")
        fill(first, 0)
        fill(second, 1)
        first.launch()
        first.launch()
        waits = gpu.waits
        second.buffers["state"].take(first.buffers["state"], [(2, 0), (0, 1)])
        second.launch()
        assert gpu.waits == waits
        ends.append(second.buffers["state"].read())
    np.testing.assert_array_equal(ends[0], ends[1])


def test_arena_that_grows_is_told_to_all_and_captured_again(on_gpu: Open, cpu: OnnxRuntimeEngine) -> None:
    gpu, engine = on_gpu()
    ends = []
    for each in (engine, cpu):
        small, large = each.session(dims(1), CARRY), each.session(dims(4), CARRY)
        fill(small, 0)
        fill(large, 1)
        for _ in range(3):
            small.launch()
        if each is engine:
            assert gpu.counts["capture"] == 1
        for _ in range(3):
            large.launch()
        for _ in range(3):
            small.launch()
        ends.append((small.buffers["state"].read(), large.buffers["state"].read()))
    # The small session is captured twice, as its activations have moved.
    assert gpu.counts["capture"] == 3
    for found, expected in zip(*ends, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_graph_that_is_replayed_over_a_moved_arena_is_found_out(
    on_gpu: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpu, engine = on_gpu()
    session: Any = engine.session(dims(1), CARRY)
    fill(session, 0)
    for _ in range(3):
        session.launch()
    fill(large := engine.session(dims(4), CARRY), 1)
    large.launch()
    monkeypatch.setattr(session, "_bind_workspace", lambda: None)
    session.launch()
    with pytest.raises(EngineError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        session.buffers["state"].read()


def test_no_memory_for_buffers_or_activations(on_gpu: Open) -> None:
    gpu, engine = on_gpu()
    fill(session := engine.session(dims(1), CARRY), 0)
    session.launch()
    gpu.total_bytes = gpu.total_bytes - gpu.free_bytes + 1000
    with pytest.raises(
        EngineError, match=r"denoiser at \{.*\} on cuda:0: buffers: out of memory: .* 1000 bytes of"
    ):
        engine.session(dims(4), CARRY)
    # Existing sessions go on, and a new one works once there is memory again.
    session.launch()
    gpu.total_bytes += 1 << 22
    fill(second := engine.session(dims(4), CARRY), 0)
    gpu.total_bytes = gpu.total_bytes - gpu.free_bytes
    with pytest.raises(
        EngineError, match=r"activations: out of memory: .* ask for a smaller --size or batch"
    ):
        second.launch()
    gpu.total_bytes += 1 << 30
    second.launch()
    session.launch()
    assert np.isfinite(second.buffers["state"].read()).all()


@pytest.mark.parametrize("why", ["broken", "refused"])
def test_capture_that_fails_is_done_without(
    on_gpu: Open, cpu: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """It warns once, and no launch is lost."""
    gpu, engine = on_gpu()
    gpu.captures_to_break = int(why == "broken")
    session = engine.session(dims(5), CARRY, "finite")
    if why == "refused":
        enqueue = TensorRtContext.enqueue

        def refuse(context: TensorRtContext, stream: int) -> None:
            if gpu.streams[stream].captured is not None:
                raise RuntimeError("not in a capture")
            enqueue(context, stream)

        monkeypatch.setattr(TensorRtContext, "enqueue", refuse)
    with pytest.warns(
        UserWarning,
        match=r"CUDA graph capture failed \((CUDA_ERROR_STREAM|not in a).*without a graph",
    ) as said:
        found, watched = run(engine, 5, 7)
    assert len(said) == 1
    expected, seen = run(cpu, 5, 7)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(watched, seen)
    assert (gpu.counts["capture"], gpu.counts["graph launch"], gpu.counts["run"]) == (1, 0, 7)
    assert engine.session(dims(5), CARRY, "finite") is session


def test_capture_that_was_asked_for_and_fails_is_an_error(on_gpu: Open, cpu: OnnxRuntimeEngine) -> None:
    """Only of that launch: a later one may be captured."""
    gpu, engine = on_gpu(cuda_graph=True)
    session = engine.session(dims(2), CARRY)
    fill(session, 0)
    session.launch()
    gpu.captures_to_break = 1
    with pytest.raises(
        EngineError, match=r"CUDA graph capture failed \(CUDA_ERROR_.*\): leave cuda_graph out"
    ) as caught:
        session.launch()
    assert caught.value.exit_code == 5
    ends = []
    for each in (session, cpu.session(dims(2), CARRY)):
        fill(each, 1)
        for _ in range(4):
            each.launch()
        ends.append(each.buffers["state"].read())
    np.testing.assert_array_equal(ends[0], ends[1])
    assert (gpu.counts["capture"], gpu.counts["graph launch"]) == (2, 3)


def on_another_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("launches_before", [0, 1, 2, 3])
def test_session_runs_on_another_thread(on_gpu: Open, cpu: OnnxRuntimeEngine, launches_before: int) -> None:
    """As in a server: opened on one thread, launched on others, before and after its graph is captured."""
    gpu, engine = on_gpu()
    ends = []
    for each in (engine, cpu):
        session = each.session(dims(2), CARRY, "finite")
        session.watched(wait=True)
        fill(session, 0)
        for _ in range(launches_before):
            session.launch()

        def go_on(session: Session = session) -> Any:
            for _ in range(4):
                session.buffers["noise"].push()
                session.launch()
            return session.buffers["state"].read(), session.watched(wait=True)

        ends.append(on_another_thread(go_on))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    np.testing.assert_array_equal(ends[0][1], ends[1][1])
    # A launch on the capturing thread precedes the capture.
    assert (gpu.counts["capture"], gpu.counts["run"]) == (1, launches_before + 4)


def test_thread_without_a_current_device_is_found_out(on_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu, engine = on_gpu()
    fill(session := engine.session(dims(1), CARRY), 0)
    monkeypatch.setattr(CudaDevice, "enter", lambda device, what: None)
    with pytest.raises(EngineError, match="CUDA_ERROR_INVALID_CONTEXT"):
        on_another_thread(session.launch)


@pytest.mark.parametrize("exclusive", [True, False])
def test_nothing_is_loaded_during_a_capture(
    on_gpu: Open, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    """Loading may synchronise the device, which breaks captures in every thread."""
    if not exclusive:
        monkeypatch.setattr("sd2rt.engines.tensorrt.allocation.EXCLUSIVE", contextlib.nullcontext())
    _gpu, engine = on_gpu()
    fill(session := engine.session(dims(1), CARRY), 0)
    session.launch()
    capturing, loaded = threading.Event(), threading.Event()
    enqueue = TensorRtContext.enqueue

    def slow(context: TensorRtContext, stream: int) -> None:
        enqueue(context, stream)
        capturing.set()
        loaded.wait(0.3)

    monkeypatch.setattr(TensorRtContext, "enqueue", slow)
    failures: list[Exception] = []

    def load() -> None:
        capturing.wait()
        try:
            engine.session(dims(2), CARRY)
        except EngineError as error:
            failures.append(error)
        loaded.set()

    thread = threading.Thread(target=load)
    thread.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session.launch()
    thread.join()
    broken = [item for item in caught if "CUDA graph capture failed" in str(item.message)]
    assert (len(broken), len(failures)) == ((0, 0) if exclusive else (1, 1))


def test_mistake_in_a_capture_is_not_the_devices(on_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu, engine = on_gpu()
    fill(session := engine.session(dims(1), CARRY), 0)
    session.launch()

    def wrong() -> None:
        raise ValueError("mine")

    monkeypatch.setattr(session, "_enqueue", wrong)
    with pytest.raises(ValueError, match="mine"):
        session.launch()


def test_device_that_is_lost_in_a_capture(on_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, engine = on_gpu()
    fill(session := engine.session(dims(1), CARRY), 0)
    session.launch()

    def lose() -> None:
        gpu.fault = "CUDA_ERROR_ILLEGAL_ADDRESS"
        raise RuntimeError("something else")

    monkeypatch.setattr(session, "_enqueue", lose)
    with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"):
        session.launch()


def test_watched_output_of_the_cpu(cpu: OnnxRuntimeEngine) -> None:
    """Each output is returned once, immediately."""
    session = cpu.session(dims(2), CARRY, "finite")
    session.watched(wait=True)
    fill(session, 0)
    session.launch()
    session.launch()
    first = session.watched(wait=False)
    np.testing.assert_array_equal(first, [[1, 1], [1, 1]])
    assert session.watched(wait=True) == []
    spoilt = session.buffers["state"].read()
    spoilt[1] = np.nan
    session.buffers["state"].write(spoilt)
    session.launch()
    np.testing.assert_array_equal(session.watched(wait=False), [[1, 0]])
    # The returned arrays are copies.
    np.testing.assert_array_equal(first, [[1, 1], [1, 1]])
    assert cpu.session(dims(2), CARRY) is not session
