"""An engine of TensorRT for RTX with one addition: does a GPU run what the default build targets?

Built on a machine without a GPU for the default compute capabilities, it answers within seconds whether TensorRT for
RTX has code for the GPU at hand. Its documentation names no compute capability 9.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import CannotRunError, Record

FILE = "tiny.engine"
_SIZE = 256
_MASK_OFFSET = 0x20


def build(folder: Path) -> bool:
    """Build the engine where TensorRT for RTX is installed; false where it is not."""
    try:
        trt: Any = import_module("tensorrt_rtx")
    except ImportError:
        return False
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    x = network.add_input("x", trt.DataType.FLOAT, (_SIZE,))
    layer = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM)
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        return False
    (folder / FILE).write_bytes(bytes(plan))
    return True


def ask(settings: QuickSettings) -> Iterator[Record]:
    """Validity of the header, then a run with its result compared; skipped where the kit has no engine."""
    path = settings.content / FILE
    if not path.is_file():
        raise CannotRunError("the kit has no tiny engine: TensorRT for RTX was missing where it was packed")
    trt: Any = import_module("tensorrt_rtx")
    plan = path.read_bytes()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    validity, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    yield {
        "engine": "tiny, default targets",
        "bytes": len(plan),
        "mask": hex(struct.unpack_from("<I", plan, _MASK_OFFSET)[0]),
        "version": trt.__version__,
        "file": settings.shown(trt.__file__),
        "validity": str(validity),
        "diagnostics": int(diagnostics),
    }
    if settings.device == "cpu":
        raise CannotRunError("running an engine needs an NVIDIA GPU, and this is a dry run")
    answer = _run(trt, runtime, plan)
    yield {"engine": "tiny, default targets", "runs": answer}
    if answer != "yes":
        raise CannotRunError(f"TensorRT for RTX does not run here: {answer}")


def _run(trt: Any, runtime: Any, plan: bytes) -> str:
    from cuda.bindings import driver

    def checked(answer: tuple[Any, ...]) -> Any:
        if int(answer[0]):
            raise RuntimeError(f"CUDA reported {answer[0].name}")
        return answer[1] if len(answer) > 1 else None

    checked(driver.cuInit(0))
    checked(driver.cuCtxSetCurrent(checked(driver.cuDevicePrimaryCtxRetain(0))))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return "no: the engine cannot be deserialized"
    context = engine.create_execution_context()
    if context is None:
        return "no: no execution context"
    x, y = np.arange(_SIZE, dtype=np.float32), np.full(_SIZE, np.nan, np.float32)
    addresses = [checked(driver.cuMemAlloc(x.nbytes)) for _ in range(2)]
    stream = checked(driver.cuStreamCreate(0))
    checked(driver.cuMemcpyHtoD(addresses[0], x.ctypes.data, x.nbytes))
    for name, address in zip("xy", addresses, strict=True):
        context.set_tensor_address(name, int(address))
    launched = context.execute_async_v3(int(stream))
    checked(driver.cuStreamSynchronize(stream))
    checked(driver.cuMemcpyDtoH(y.ctypes.data, addresses[1], y.nbytes))
    return "yes" if launched and bool((y == 2 * x).all()) else f"no: launched {launched}, wrong result"
