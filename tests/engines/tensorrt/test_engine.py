"""Engine files: what is refused and why, profiles, the kernel cache; on a simulated GPU and a simulated TensorRT."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.manifest import EngineEntry, Part
from sd2rt.engines.bundle.reader import open_bundle, plain_file
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import BundleError, EngineError, MissingDependencyError
from sd2rt.engines.tensorrt import engine as tensorrt_runtime
from sd2rt.engines.tensorrt.engine import TensorRtEngine
from sd2rt.engines.tensorrt.packages import DTYPES, load_module

from ..simulated_gpu import SimulatedGpu
from ..simulated_tensorrt import build, make_tensorrt

SIZES = {"B": (1, 1, 4), "h": (8, 8, 8), "w": (8, 8, 8)}
WIDE = {"B": (1, 1, 2), "h": (8, 8, 8), "w": (16, 16, 16)}
DIMS = {"B": 1, "h": 8, "w": 8}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    made = SimulatedGpu(pace="random")
    made.install(monkeypatch)
    return made


class Bench:
    """A decoder's engine in a folder, and what opens it."""

    def __init__(self, gpu: SimulatedGpu, device: CudaDevice, bundle: Path, folder: Path) -> None:
        opened = open_bundle(bundle)
        self.gpu, self.device, self.folder = gpu, device, folder
        self.part: Part = opened.manifest.parts["decoder"]
        self.onnx = opened.file(self.part.onnxruntime)
        self.module = make_tensorrt(gpu)

    def build(self, module: Any = None, **options: Any) -> EngineEntry:
        profiles = options.pop("profiles", [SIZES, WIDE])
        module = module or self.module
        return build(self.folder, "decoder", self.part, self.onnx, profiles, module=module, **options)

    def open(self, entry: EngineEntry, module: Any = None, **options: Any) -> TensorRtEngine:
        module = module or self.module
        return TensorRtEngine(self.part, entry, self.folder, self.device, module, **options)

    def path(self, entry: EngineEntry) -> Path:
        return self.folder / entry.file.path

    def refused(self, entry: EngineEntry, module: Any = None) -> str:
        with pytest.raises(BundleError) as caught:
            self.open(entry, module)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def bench(gpu: SimulatedGpu, small_bundle: Path, tmp_path: Path) -> Iterator[Bench]:
    with CudaDevice() as device:
        yield Bench(gpu, device, small_bundle, tmp_path)


def decode(engine: TensorRtEngine, dims: dict[str, int] = DIMS) -> Any:
    session = engine.session(dims)
    buffer = session.buffers["latents"]
    buffer.write(np.random.default_rng(0).standard_normal(buffer.shape).astype(np.float32))
    session.launch()
    return session.buffers["image"].read()


@pytest.mark.parametrize("damage", ["bit", "cut", "longer", "missing", "link", "folder"])
def test_altered_file_is_never_deserialised(bench: Bench, damage: str) -> None:
    entry = bench.build()
    path = bench.path(entry)
    content = path.read_bytes()
    path.unlink()
    if damage == "bit":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    elif damage == "link":
        (bench.folder / "elsewhere").write_bytes(content)
        path.symlink_to(bench.folder / "elsewhere")
    elif damage == "folder":
        path.mkdir()
    assert str(path) in bench.refused(entry)
    assert bench.gpu.counts["deserialize"] == 0


def test_file_that_changes_after_its_size_was_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deserialised is what was hashed, to the end of the file."""
    entry = bench.build()
    path = bench.path(entry)
    looked = plain_file

    def change(*given: Any) -> Any:
        status = looked(*given)
        path.write_bytes(path.read_bytes() + b" ")
        return status

    monkeypatch.setattr("sd2rt.engines.tensorrt.engine.plain_file", change)
    assert "has sha256" in bench.refused(entry)
    assert bench.gpu.counts["deserialize"] == 0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"version": "11.4.0.99"},
            "was built by tensorrt 11.4.0.99, and runs in no other: this is 11.4.0.106",
        ),
        ({"version": "12.0", "version_compatible": True}, "runs in no other: this is 11.4.0.106"),
        ({"platform": "linux-aarch64"}, "was built for linux-aarch64, this is linux-"),
        ({"compute_capabilities": ("8.6", "8.0")}, "was built for sm_80, sm_86, this GPU is sm_90"),
        (
            {"compute_capabilities": ("12.0",), "hardware_compatible": True},
            "built for sm_120, this GPU is sm_90",
        ),
    ],
)
def test_engine_of_another_version_or_gpu(bench: Bench, entry: dict[str, Any], said: str) -> None:
    message = bench.refused(bench.build(**entry))
    assert said in message
    assert message.endswith(f"build it with 'sd2rt build {bench.folder} --engines-only --backend tensorrt'")
    assert bench.gpu.counts["deserialize"] == 0


def test_engine_that_runs_elsewhere_too(bench: Bench) -> None:
    entry = bench.build(compute_capabilities=("8.0",), hardware_compatible=True)
    with bench.open(entry) as engine:
        assert np.isfinite(decode(engine)).all()


def test_engine_that_the_backend_refuses(bench: Bench) -> None:
    """The first of its errors, in one line."""
    other = make_tensorrt(bench.gpu, "tensorrt_rtx")
    message = bench.refused(bench.build(module=other, version=bench.module.__version__))
    assert (
        "is refused by tensorrt 11.4.0.106 (IRuntime::deserializeCudaEngine: Error Code 1: Serialization"
        in message
    )
    assert "(engine of tensorrt_rtx))" in message
    assert "what follows" not in message


def test_engine_that_does_not_fit_the_device(bench: Bench) -> None:
    entry = bench.build(plan={"refused": "Error Code 2: OutOfMemory (Requested size was 3 bytes)"})
    with pytest.raises(
        EngineError, match=r"cannot be loaded on cuda:0: out of memory: .*1\.00 GiB .* are free"
    ):
        bench.open(entry)


def test_context_that_does_not_fit_the_device(bench: Bench) -> None:
    with (
        bench.open(bench.build(plan={"no_context": True})) as engine,
        pytest.raises(EngineError, match=r"decoder at .* cannot be prepared: out of memory"),
    ):
        engine.session(DIMS)


def _changed(part: Part, **changes: Any) -> dict[str, Any]:
    described = part.model_dump(mode="json")
    described.update(changes)
    return {"part": described}


@pytest.mark.parametrize("what", ["name", "dtype", "rank", "fixed", "missing", "host", "profile", "profiles"])
def test_engine_of_another_part(bench: Bench, what: str) -> None:
    """The file was hashed and is what was built: the manifest's entries belong together or not."""
    latents = bench.part.inputs[0].model_dump(mode="json")
    profiles = [SIZES, WIDE]
    plans: dict[str, Callable[[], dict[str, Any]]] = {
        "name": lambda: _changed(bench.part, inputs=[{**latents, "name": "other"}]),
        "dtype": lambda: _changed(bench.part, inputs=[{**latents, "dtype": "float16"}]),
        "rank": lambda: _changed(bench.part, inputs=[{**latents, "shape": ["B", 4, "h", "w", 1]}]),
        "fixed": lambda: _changed(bench.part, inputs=[{**latents, "shape": ["B", 9, "h", "w"]}]),
        "missing": lambda: _changed(bench.part, outputs=[]),
        "host": lambda: {"on_host": ["latents"]},
        "profile": lambda: {"profiles": [SIZES, {**WIDE, "B": (1, 1, 3)}]},
        "profiles": lambda: {"profiles": [SIZES]},
    }
    message = bench.refused(bench.build(plan=plans[what](), profiles=profiles))
    assert "its manifest says" in message
    assert "latents" in message or what in ("missing", "profiles")


def test_profiles(bench: Bench) -> None:
    with bench.open(bench.build()) as engine:
        assert decode(engine).shape == (1, 3, 64, 64)
        assert decode(engine, {"B": 2, "h": 8, "w": 16}).shape == (2, 3, 64, 128)
        with pytest.raises(BundleError) as caught:
            engine.session({"B": 3, "h": 8, "w": 16})
    assert str(caught.value) == (
        f"{bench.folder}/decoder/tensorrt.engine was not built for B 3, h 8, w 16, but for profile-0 (B 1 to 4, h 8, "
        f"w 8); profile-1 (B 1 to 2, h 8, w 16): build it with 'sd2rt build {bench.folder} --engines-only "
        "--backend tensorrt --size 128x64 --batch 3'"
    )


def test_sessions_are_kept_and_the_oldest_is_closed(bench: Bench) -> None:
    sizes = {"B": (1, 1, 99), "h": (8, 8, 8), "w": (8, 8, 8)}
    with bench.open(bench.build(profiles=[sizes])) as engine:
        first = engine.session(DIMS)
        assert engine.session(dict(reversed(DIMS.items()))) is first
        for batch in range(2, 17):
            engine.session({**DIMS, "B": batch})
        assert engine.session(DIMS) is first
        oldest = engine.session({**DIMS, "B": 2})
        for batch in (*range(3, 17), 1):
            engine.session({**DIMS, "B": batch})
        held = bench.gpu.free_bytes, bench.gpu.pinned_bytes
        engine.session({**DIMS, "B": 17})
        assert engine.session(DIMS) is first
        with pytest.raises(EngineError, match="is closed: open its engine again"):
            oldest.launch()
        # What it held is what the others have now, but for the few bytes that they are larger.
        assert abs(bench.gpu.free_bytes - held[0]) < 4 << 20
        assert abs(bench.gpu.pinned_bytes - held[1]) < 4 << 20
        assert engine.session({**DIMS, "B": 2}) is not oldest


def test_closed_engine_has_given_everything_back(bench: Bench) -> None:
    engine = bench.open(bench.build())
    before = bench.gpu.free_bytes, bench.gpu.pinned_bytes
    decode(engine)
    session = engine.session(DIMS)
    engine.close()
    with pytest.raises(EngineError, match="decoder on cuda:0 is closed: open it again"):
        engine.session(DIMS)
    with pytest.raises(EngineError, match="is closed: open its engine again"):
        session.launch()
    bench.device.arena.free()
    bench.device.synchronize()
    staging = bench.device._staging
    assert staging is not None
    assert (bench.gpu.free_bytes, bench.gpu.pinned_bytes - staging.nbytes) == before
    engine.close()


def test_enqueue_that_fails_says_why(bench: Bench) -> None:
    entry = bench.build(plan={"enqueue_fails": "IExecutionContext::enqueueV3: Error Code 3: API Usage"})
    with (
        bench.open(entry) as engine,
        pytest.raises(EngineError, match=r"it cannot be enqueued: IExec.* API Usage$"),
    ):
        decode(engine)


def test_fault_on_the_device_ends_the_process_work(bench: Bench) -> None:
    entry = bench.build(plan={"fault": "CUDA_ERROR_ILLEGAL_ADDRESS"})
    engine = bench.open(entry)
    with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*start it again"):
        decode(engine)
    with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*start it again"):
        engine.session({**DIMS, "B": 2})
    engine.close()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_not_capturable(bench: Bench, name: str) -> None:
    """TensorRT for RTX can tell: it says so once, and runs without a graph."""
    module = make_tensorrt(bench.gpu, name)
    backend = name.replace("_", "-")
    with bench.open(
        bench.build(module=module, backend=backend, plan={"not_capturable": True}), module
    ) as engine:
        expected = decode(engine)
        if name == "tensorrt_rtx":
            with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph") as said:
                found = [decode(engine) for _ in range(3)]
            assert len(said) == 1
        else:
            found = [decode(engine) for _ in range(3)]
    assert bench.gpu.counts["graph launch"] == (0 if name == "tensorrt_rtx" else 3)
    for image in found:
        np.testing.assert_array_equal(image, expected)


def test_without_graphs(bench: Bench) -> None:
    with bench.open(bench.build(), cuda_graph=False) as engine:
        images = [decode(engine) for _ in range(3)]
    np.testing.assert_array_equal(images[0], images[2])
    assert bench.gpu.counts["capture"] == 0


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
    # What the backend cannot read is made anew, and what cannot be written is done without.
    expected.write_bytes(b"garbage")
    assert run(DIMS) == frozenset()
    assert expected.read_bytes() == first
    expected.unlink()
    expected.mkdir()
    assert run(DIMS) == frozenset()


def test_kernels_are_compiled_before_they_are_captured(bench: Bench) -> None:
    module = make_tensorrt(bench.gpu, "tensorrt_rtx")
    entry = bench.build(module=module, backend="tensorrt-rtx")
    with bench.open(entry, module) as engine:
        session: Any = engine.session(DIMS)
        config = session._executable._context.config
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        assert config.cuda_graph_strategy.name == "DISABLED"


@pytest.mark.parametrize(
    ("backend", "portable", "name", "extra"),
    [
        ("tensorrt", False, "tensorrt", "tensorrt"),
        ("tensorrt", True, "tensorrt_lean", "lean"),
        ("tensorrt-rtx", False, "tensorrt_rtx", "rtx"),
    ],
)
def test_modules(
    monkeypatch: pytest.MonkeyPatch, backend: Any, portable: bool, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, make_tensorrt(SimulatedGpu(), name))
    assert load_module(backend, portable).__name__ == name
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingDependencyError, match=rf"{name} cannot be loaded .*pip install 'sd2rt\[{extra}\]'"
    ):
        load_module(backend, portable)


def test_host_code_stays_forbidden() -> None:
    assert "engine_host_code_allowed" not in inspect.getsource(tensorrt_runtime)


_HOLDERS = {
    "trt": None,
    "module": None,
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "_cache": "IRuntimeCache",
}
"""The names that tensorrt_runtime.py gives to TensorRT's objects, and their classes."""
_RTX_ALONE = {
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "create_runtime_cache",
    "cuda_graph_strategy",
    "deserialize",
    "dynamic_shapes_kernel_specialization_strategy",
    "serialize",
    "set_runtime_cache",
}


def _used() -> set[tuple[str | None, str]]:
    used = set()
    for node in ast.walk(ast.parse(inspect.getsource(tensorrt_runtime))):
        if isinstance(node, ast.Attribute):
            value = node.value
            name = value.id if isinstance(value, ast.Name) else getattr(value, "attr", "")
            if name in _HOLDERS:
                used.add((_HOLDERS[name], node.attr))
    return used - {(None, "__name__"), (None, "__version__")}


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt_lean"])
def test_what_is_used_of_tensorrt_is_there(name: str) -> None:
    module = pytest.importorskip(name)
    used = _used()
    assert {("ICudaEngine", "get_tensor_profile_shape"), (None, "TensorLocation")} <= used
    for holder, attribute in used:
        if name != "tensorrt_rtx" and attribute in _RTX_ALONE:
            continue
        owner = module if holder is None else getattr(module, holder)
        assert hasattr(owner, attribute), (holder, attribute)
    assert {"ERROR", "INTERNAL_ERROR"} <= set(dir(module.ILogger))
    assert "USER_MANAGED" in module.ExecutionContextAllocationStrategy.__members__
    assert "DEVICE" in module.TensorLocation.__members__
    assert {"INPUT", "OUTPUT"} <= set(module.TensorIOMode.__members__)
    assert set(DTYPES) <= set(module.DataType.__members__)
    if name == "tensorrt_rtx":
        assert "EAGER" in module.DynamicShapesKernelSpecializationStrategy.__members__
        assert "DISABLED" in module.CudaGraphStrategy.__members__


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt_lean"])
def test_the_simulation_offers_nothing_that_tensorrt_lacks(name: str) -> None:
    real = pytest.importorskip(name)
    fake = make_tensorrt(SimulatedGpu(), name)
    own = {"module", "gpu", "known", "kernels", "strategy", "cache"}
    for kind in [kind for kind in dir(fake) if not kind.startswith("_") and kind != "gpu"]:
        public = {item for item in dir(getattr(fake, kind)) if not item.startswith("_")} - own
        assert public <= set(dir(getattr(real, kind))), kind
