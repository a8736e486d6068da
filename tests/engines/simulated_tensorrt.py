"""A simulated TensorRT: the part of its runtime that sd2rt uses, computing with ONNX Runtime on the CPU.

An engine file is JSON that names a part's ONNX. An enqueued execution runs when the simulated GPU reaches it in the
stream, on the memory at the addresses that were bound when it was enqueued.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from sd2rt.engines.bundle.engine_entry import BuilderOptions, EngineEntry, Profile
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import File, Part, Tensor, shape_of
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.tensorrt.engine_header import MASK_BITS, MASK_OFFSET

from .simulated_gpu import FaultError, SimulatedGpu

Sizes = dict[str, tuple[int, int, int]]

_MAGIC, _HEADER = b"vgrt", 64

_KERNELS: dict[str, OnnxRuntimeEngine] = {}
_NAMES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "uint8": "UINT8", "bool": "BOOL"}


def build(
    folder: Path,
    name: PartName,
    part: Part,
    onnx: Path,
    profiles: Sequence[Sizes],
    *,
    module: Any,
    backend: Any = "tensorrt",
    plan: dict[str, Any] | None = None,
    **entry: Any,
) -> EngineEntry:
    """Write an engine file and return its manifest entry; ``plan`` and ``entry`` override their fields."""
    content = {
        "module": module.__name__,
        "onnx": str(onnx),
        "part": part.model_dump(mode="json"),
        "profiles": profiles,
        **(plan or {}),
    }
    data = json.dumps(content).encode()
    if module.__name__ == "tensorrt_rtx":
        capabilities = entry.get("compute_capabilities", ())
        mask = content.pop("mask", sum(MASK_BITS.get(item, 0) for item in capabilities))
        data = (
            _MAGIC.ljust(MASK_OFFSET, b"\0")
            + struct.pack("<I", mask).ljust(_HEADER - MASK_OFFSET, b"\0")
            + data
        )
    path = folder / name / f"{backend}.engine"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    file = File(path=f"{name}/{path.name}", size=len(data), sha256=hashlib.sha256(data).hexdigest())
    report_path = path.with_suffix(".json")
    report_path.write_bytes(b"{}")
    report = File(path=f"{name}/{report_path.name}", size=2, sha256=hashlib.sha256(b"{}").hexdigest())
    fields: dict[str, Any] = {
        "part": name,
        "backend": backend,
        "version": module.__version__,
        "compute_capabilities": ("9.0",),
        "gpu": None,
        "driver": None,
        "platform": "linux-x86_64",
        "precision": "fp32",
        "version_compatible": False,
        "hardware_compatible": False,
        "key": file.sha256,
        "label": "b1",
        "options": BuilderOptions(backend=backend),
        "flags": (),
        "profiles": tuple(Profile(name=f"profile-{index}", dims=dims) for index, dims in enumerate(profiles)),
        "file": file,
        "report": report,
        "onnx": "0" * 64,
        "weights": "0" * 64,
    }
    return EngineEntry(**{**fields, **entry})


def make_tensorrt(gpu: SimulatedGpu, name: str = "tensorrt", version: str = "11.4.0.106") -> Any:
    """Create the module; named ``tensorrt_rtx`` it has the additional API of TensorRT for RTX."""
    module: Any = ModuleType(name)
    module.__version__ = version
    module.gpu = gpu
    rtx = name == "tensorrt_rtx"
    module.ILogger = ILogger
    module.TensorLocation = TensorLocation
    module.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    module.Runtime = type("Runtime", (RtxRuntime if rtx else Runtime,), {"module": module})
    module.ICudaEngine = RtxEngine if rtx else ICudaEngine
    module.IExecutionContext = RtxExecutionContext if rtx else IExecutionContext
    module.IRuntimeConfig = RtxRuntimeConfig if rtx else IRuntimeConfig
    if rtx:
        module.IRuntimeCache = IRuntimeCache
        module.EngineValidity = EngineValidity
        module.EngineInvalidityDiagnostics = EngineInvalidityDiagnostics
        module.CudaGraphStrategy = CudaGraphStrategy
        module.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    return module


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class Runtime:
    module: Any

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes | bytearray) -> Any:
        self.module.gpu.counts["deserialize"] += 1
        self.module.gpu.require_context()
        # It may synchronise the device.
        self.module.gpu.forbid_in_capture(any_thread=True)
        self.logger.log(Severity.INFO, "Loaded engine size: 0 MiB")
        try:
            content = bytes(serialized_engine)
            plan = json.loads(content[_HEADER:] if content.startswith(_MAGIC) else content)
            if plan["module"] != self.module.__name__:
                raise ValueError(f"engine of {plan['module']}")
        except ValueError as error:
            self.logger.log(
                Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization\n({error})"
            )
            self.logger.log(Severity.ERROR, "what follows from it")
            return None
        gpu: SimulatedGpu = self.module.gpu
        if plan.get("bytes", 0) > gpu.free_bytes - gpu.pooled_bytes:
            self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was many bytes)")
            return None
        if said := plan.get("refused"):
            self.logger.log(Severity.ERROR, said)
            return None
        return self.module.ICudaEngine(self.module, self.logger, plan)


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.Enum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class RtxRuntime(Runtime):
    engine_header_size = _HEADER

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        gpu: SimulatedGpu = self.module.gpu
        if not buffer.startswith(_MAGIC) or len(buffer) < _HEADER:
            self.logger.log(Severity.INFO, "the header does not conform")
            return EngineValidity.INVALID, EngineInvalidityDiagnostics.MALFORMED_ENGINE.value
        if not gpu.driver:
            self.logger.log(Severity.INTERNAL_ERROR, "Error reading CUDA GPU properties (cudaError 35)")
            return EngineValidity.INVALID, 0
        bit = MASK_BITS.get(".".join(map(str, gpu.capability)), 0)
        if not struct.unpack_from("<I", buffer, MASK_OFFSET)[0] & bit:
            self.logger.log(Severity.ERROR, "the engine has no code for this GPU")
            return EngineValidity.INVALID, EngineInvalidityDiagnostics.UNSUPPORTED_CC.value
        return EngineValidity.VALID, 0


class ICudaEngine:
    def __init__(self, module: Any, logger: ILogger, plan: dict[str, Any]) -> None:
        self.module, self.logger, self.plan = module, logger, plan
        part = Part.model_validate_json(json.dumps(plan["part"]))
        self.tensors: dict[str, Tensor] = {t.name: t for t in (*part.inputs, *part.outputs)}
        self.inputs = [t.name for t in part.inputs]
        self.outputs = [t.name for t in part.outputs]
        self.profiles: list[Sizes] = plan["profiles"]
        if plan["onnx"] not in _KERNELS:
            _KERNELS[plan["onnx"]] = OnnxRuntimeEngine(part, Path(plan["onnx"]), threads=1)
        self.kernels: Any = _KERNELS[plan["onnx"]]._session

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_NAMES[self.tensors[name].dtype])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.plan.get("on_host", ()) else TensorLocation.DEVICE

    def _bounds(self, name: str, index: int) -> list[tuple[int, ...]]:
        sizes = self.profiles[index]
        return [shape_of(self.tensors[name], {k: v[which] for k, v in sizes.items()}) for which in range(3)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        every = [bound for index in range(len(self.profiles)) for bound in self._bounds(name, index)]
        return tuple(size[0] if len(set(size)) == 1 else -1 for size in zip(*every, strict=True))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return self._bounds(name, profile_index)

    def create_runtime_config(self) -> Any:
        return self.module.IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any) -> Any:
        assert runtime_config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        gpu: SimulatedGpu = self.module.gpu
        gpu.counts["create context"] += 1
        gpu.require_context()
        gpu.forbid_in_capture(any_thread=True)
        if self.plan.get("context_bytes", 0) > gpu.free_bytes - gpu.pooled_bytes:
            self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (no memory for the context)")
            return None
        return self.module.IExecutionContext(self, runtime_config)


class RtxEngine(ICudaEngine):
    pass


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class RtxRuntimeConfig(IRuntimeConfig):
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
    cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class IRuntimeCache:
    def __init__(self) -> None:
        self.kernels: set[str] = set()
        self.known: frozenset[str] = frozenset()

    def deserialize(self, blob: bytes) -> bool:
        try:
            self.kernels = set(json.loads(blob))
        except ValueError:
            return False
        self.known = frozenset(self.kernels)
        return True

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.kernels)).encode()


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: Any) -> None:
        self.engine, self.config = engine, config
        self._gpu: SimulatedGpu = engine.module.gpu
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._workspace = (0, 0)
        self._settled = False
        # A capture that was broken may have been this context's.
        self._broken = 0

    def _refuse(self, reason: str) -> bool:
        self.engine.logger.log(Severity.ERROR, reason)
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._gpu.streams
        self._gpu.require_context()
        self._profile, self._settled = profile_index, False
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None or name not in self.engine.inputs:
            return self._refuse(f"{name} cannot be set")
        least, _, most = self.engine.get_tensor_profile_shape(name, self._profile)
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return self._refuse(f"{name}: {shape} is not in the profile")
        self._shapes[name], self._settled = tuple(shape), False
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self._shapes]

    def _dims(self) -> dict[str, int]:
        dims: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for item, size in zip(self.engine.tensors[name].shape, shape, strict=True):
                if isinstance(item, str):
                    *factor, symbol = item.split("*")
                    dims[symbol] = size // int(factor[0] if factor else 1)
        return dims

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return shape_of(self.engine.tensors[name], self._dims())

    def update_device_memory_size_for_shapes(self) -> int:
        return 4096 * sum(self._dims().values(), 1)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self._workspace, self._settled = (memory, size), False

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.tensors or memory % 256:
            return self._refuse(f"the address {memory:#x} of {name}")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu, stream = self._gpu, self._gpu.streams[stream_handle]
        gpu.called("enqueue")
        if said := self.engine.plan.get("enqueue_fails"):
            return self._refuse(said)
        if set(self._addresses) != set(self.engine.tensors) or not self._workspace[1]:
            return self._refuse("an address is missing")
        if self._workspace[1] < self.update_device_memory_size_for_shapes():
            return self._refuse("the memory for activations is too small")
        broken = gpu.counts["broken capture"]
        if stream.captured is not None and not (self._settled and self._broken == broken):
            return self._refuse("captured before it was enqueued once with these shapes")
        self._settled, self._broken = True, broken
        engine, addresses, workspace = self.engine, dict(self._addresses), self._workspace
        shapes = {name: self.get_tensor_shape(name) for name in engine.tensors}
        fault = engine.plan.get("fault")

        def run() -> None:
            if fault:
                raise FaultError(fault)
            feeds = {
                name: gpu.load(addresses[name], shapes[name], engine.tensors[name].dtype)
                for name in engine.inputs
            }
            # Activations, and what whoever lies there by mistake finds.
            gpu.store(workspace[0], np.full(workspace[1], 0xA5, np.uint8))
            gpu.counts["run"] += 1
            try:
                found = engine.kernels.run(engine.outputs, feeds)
            except Exception as error:
                # An index out of range, mostly.
                raise FaultError("CUDA_ERROR_ILLEGAL_ADDRESS") from error
            for name, array in zip(engine.outputs, found, strict=True):
                assert array.shape == shapes[name]
                gpu.store(addresses[name], array)

        stream.enqueue(run)
        return True


class RtxExecutionContext(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.plan.get("not_capturable")

    def execute_async_v3(self, stream_handle: int) -> bool:
        cache = self.config.cache
        if cache is not None:
            cache.kernels.add(re.sub(r"\W+", "-", str(sorted(self._shapes.items()))))
        return super().execute_async_v3(stream_handle)
