"""A device's errors, facts, memory and graphs, on a simulated GPU."""

from __future__ import annotations

import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.cuda.device import OLDEST_CUDA_CORE, STICKY, CudaDevice, shown
from sd2rt.engines.cuda.memory import Ring
from sd2rt.engines.errors import EngineError, MissingDependencyError

from ..simulated_gpu import CUDAError, SimulatedGpu

GIB = 1 << 30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    made = SimulatedGpu(pace="lazy")
    made.install(monkeypatch)
    return made


@pytest.fixture
def device(gpu: SimulatedGpu) -> Iterator[CudaDevice]:
    with CudaDevice() as opened:
        yield opened


def test_importing_opens_nothing() -> None:
    code = (
        "import sd2rt.engines.cuda.session, sd2rt.engines.tensorrt.engine, sys\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in ('cuda', 'tensorrt', 'tensorrt_rtx')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_device_says_of_itself(device: CudaDevice) -> None:
    assert (str(device), device.name, device.compute_capability) == ("cuda:0", "Simulated GPU 1", "9.0")
    assert device.driver == "580.65.06"


def test_no_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install '\.\[tensorrt\]' in sd2rt's checkout, or the extra rtx"
    ) as caught:
        CudaDevice()
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["0.7.0", "0.3.2", "1.0.0a1", "1.0.0", "2.1"])
def test_another_cuda_core(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """An old version is reported as such, not as a missing attribute."""
    SimulatedGpu(core_version=version).install(monkeypatch)
    if not version.startswith("0"):
        CudaDevice().close()
        return
    with pytest.raises(
        MissingDependencyError,
        match=rf"^cuda-core {version} is too old, 1\.0 or later is .*: pip install '\.\[",
    ) as caught:
        CudaDevice()
    assert caught.value.exit_code == 6


def test_every_extra_with_cuda_python_names_cuda_core() -> None:
    """cuda-python 13.0 and 13.1 do not depend on it."""
    root = Path(__file__).parents[3]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {name: items for name, items in extras.items() if any("cuda-python" in item for item in items)}
    assert set(wanted) == {"cuda", "tensorrt", "rtx", "lean"}
    for items in wanted.values():
        assert f"cuda-core>={OLDEST_CUDA_CORE}.0" in items


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search.\nx'),
            "driver",
        ),
        (CUDAError("CUDA_ERROR_NO_DEVICE: no CUDA-capable device"), "CUDA_ERROR_NO_DEVICE"),
        (CUDAError("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: mismatch"), "nvidia-smi"),
    ],
)
def test_no_gpu(gpu: SimulatedGpu, missing: Exception, said: str) -> None:
    gpu.missing = missing
    with pytest.raises(
        MissingDependencyError, match=f"CUDA could not start on cuda:0 .*{said}.*--device cpu"
    ) as caught:
        CudaDevice()
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


def test_real_machine_without_a_driver() -> None:
    """The errors of the real cuda.core are recognised."""
    core = pytest.importorskip("cuda.core")
    try:
        core.Device(0)
    except Exception:
        with pytest.raises(MissingDependencyError, match="CUDA could not start on cuda:0"):
            CudaDevice()
    else:
        pytest.skip("this machine has a GPU")


def test_a_gpu_that_is_not_there(gpu: SimulatedGpu) -> None:
    with pytest.raises(
        MissingDependencyError, match=r"there is no cuda:3 \(device_id must be within \[0, 1\)"
    ):
        CudaDevice(3)


def test_no_memory_tells_what_for_how_much_and_what_is_free(device: CudaDevice) -> None:
    held = device.allocate(GIB // 2, "the one")
    with pytest.raises(EngineError) as caught:
        device.allocate(GIB, "the other")
    assert str(caught.value) == (
        "the other: out of memory: 1.00 GiB (1073741824 bytes) requested, 512.00 MiB (536870912 bytes) of "
        "1.00 GiB (1073741824 bytes) free on cuda:0: ask for a smaller --size or batch, or free the GPU"
    )
    held.free()
    device.synchronize()
    device.allocate(GIB, "the other").free()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(5, "5 bytes"), (2048, "2.00 KiB (2048 bytes)"), (3 << 40, "3.00 TiB (3298534883328 bytes)")],
)
def test_bytes_are_shown(nbytes: int, text: str) -> None:
    assert shown(nbytes) == text


@pytest.mark.parametrize("name", STICKY)
def test_after_a_sticky_error_every_call_says_so(device: CudaDevice, gpu: SimulatedGpu, name: str) -> None:
    gpu.fault = name
    with (
        pytest.raises(EngineError, match=f"^x: cuda:0 reported {name}, .*: restart the process$"),
        device.errors("x"),
    ):
        device.synchronize()
    # Even if the driver recovers.
    gpu.fault = None
    for take in (device.allocate, device.pin):
        with pytest.raises(EngineError, match=f"{name}.*restart the process"):
            take(1, "more")


def test_an_error_told_in_other_words_is_found_to_be_sticky(device: CudaDevice, gpu: SimulatedGpu) -> None:
    with pytest.raises(EngineError, match=r"^a launch: something went wrong$"), device.errors("a launch"):
        raise RuntimeError("something went wrong\nat length")
    gpu.fault = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with (
        pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"),
        device.errors("a launch"),
    ):
        raise RuntimeError("cudaError 700")


def test_mistakes_of_the_program_are_not_the_devices(device: CudaDevice) -> None:
    with pytest.raises(ValueError, match="mine"), device.errors("x"):
        raise ValueError("mine")


def test_sticky_names_are_the_drivers() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    assert set(STICKY) <= set(driver.CUresult.__members__)


def test_any_thread_can_use_the_device(device: CudaDevice) -> None:
    raised: list[Exception] = []

    def use() -> None:
        try:
            device.allocate(8, "here").free()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert raised == []


def test_closed_device(device: CudaDevice) -> None:
    device.close()
    with pytest.raises(EngineError, match="cuda:0 is closed: open it again"):
        device.allocate(1, "x")


def test_capture_runs_nothing_and_replays_all(device: CudaDevice, gpu: SimulatedGpu) -> None:
    a, b = device.allocate(8, "a"), device.allocate(8, "b")
    found = np.zeros(8, np.uint8)
    device.fill(a.buffer, 1)
    device.fill(b.buffer, 2)
    graph = device.capture(lambda: device.copy(b.buffer, a.buffer))
    device.fetch(b, found)
    assert set(found) == {2}
    for value in (3, 4):
        device.fill(a.buffer, value)
        device.replay(graph)
        device.fetch(b, found)
        assert set(found) == {value}


def test_capture_that_fails_leaves_the_stream_usable(device: CudaDevice) -> None:
    def wrong() -> None:
        device.synchronize()

    with pytest.raises(EngineError, match="CAPTURE_UNSUPPORTED"), device.errors("x"):
        device.capture(wrong)
    found = np.zeros(8, np.uint8)
    memory = device.allocate(8, "a")
    device.fill(memory.buffer, 7)
    device.fetch(memory, found)
    assert set(found) == {7}


def test_ring_wraps_and_waits_only_when_it_is_full(device: CudaDevice, gpu: SimulatedGpu) -> None:
    """With a device that does nothing yet, the first four slots are free and each further one waits once."""
    ring = Ring(device, 8, 4, "ring")
    targets = [device.allocate(8, "target") for _ in range(11)]
    for index, target in enumerate(targets):
        slot = ring.next()
        slot.array[:] = index
        device.copy(target.buffer, slot.buffer)
        slot.sent()
        assert gpu.waits == max(0, index - 3)
    found = np.zeros(8, np.uint8)
    for index, target in enumerate(targets):
        device.fetch(target, found)
        assert set(found) == {index}


def test_a_ring_that_does_not_wait_is_found_out(
    device: CudaDevice, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation detects the error that the test above guards against."""
    monkeypatch.setattr("sd2rt.engines.cuda.memory.Slot.wait", lambda self: None)
    with pytest.raises(AssertionError):
        test_ring_wraps_and_waits_only_when_it_is_full(device, gpu)


def test_arena_grows_and_says_so(device: CudaDevice, gpu: SimulatedGpu) -> None:
    first = device.arena.reserve(1000, "x")
    generation = device.arena.generation
    assert first.address % 256 == 0
    assert device.arena.reserve(500, "x") is first
    second = device.arena.reserve(5000, "x")
    assert second.nbytes >= 5000
    assert device.arena.generation != generation
    with pytest.raises(EngineError, match=r"x: activations: out of memory: 2\.00 GiB"):
        device.arena.reserve(2 * GIB, "x")
    assert device.arena.reserve(1000, "x").nbytes >= 1000
    device.synchronize()
    assert gpu.free_bytes >= GIB - 2048


def test_the_simulation_offers_nothing_that_cuda_core_lacks() -> None:
    """Every public name of a simulated class exists in the real one."""
    core = pytest.importorskip("cuda.core")
    graph = pytest.importorskip("cuda.core.graph")
    from .. import simulated_gpu as simulated

    pairs = [
        (simulated.Buffer, core.Buffer, {"gpu"}),
        (simulated.Device, core.Device, set()),
        (simulated.Event, core.Event, {"reach", "recorded"}),
        (simulated.EventOptions, core.EventOptions, set()),
        (simulated.Graph, graph.Graph, set()),
        (simulated.GraphBuilder, graph.GraphBuilder, set()),
        (simulated.LegacyPinnedMemoryResource, core.LegacyPinnedMemoryResource, set()),
        (
            simulated.Stream,
            core.Stream,
            {"enqueue", "work", "drain", "begin_capture", "end_capture", "capture_status"},
        ),
        (simulated.StreamOptions, core.StreamOptions, set()),
    ]
    for fake, real, own in pairs:
        public = {name for name in dir(fake) if not name.startswith("_")} - own
        assert public <= set(dir(real)), fake
    system = pytest.importorskip("cuda.core.system")
    assert {"get_kernel_mode_driver_version", "get_user_mode_driver_version"} <= set(dir(system))
    driver = pytest.importorskip("cuda.bindings.driver")
    assert {"cuMemGetInfo", "cuMemPoolTrimTo"} <= set(dir(driver))
    assert hasattr(core.DeviceMemoryResource, "handle")
