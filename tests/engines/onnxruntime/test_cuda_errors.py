"""ONNX Runtime's CUDA errors become one line with an exit code; a full GPU is not reported as a missing driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import EngineError, MissingDependencyError
from sd2rt.engines.interface import Device
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine

from .simulated_cuda import SimulatedCuda

CUDA = Device("cuda")
_CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, "
    "const char*, int) [with ERRTYPE = cudaError; bool THRW = true] "
)
_WHERE = "; GPU=0 ; hostname=gpu-1 ; file=/onnxruntime_src/x.cc ; line=7 ; expr=cudaX();\n"
NO_MEMORY = f"{_CALL}CUDA failure 2: out of memory {_WHERE}"
NO_ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'node_conv2d' "
    "Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Failed to allocate memory for requested buffer of size 1073741824\n"
)
REFUSED = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user "
    " as all compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)
BROKEN = f"{_CALL}CUDA failure 901: operation failed due to a previous error during capture {_WHERE}"
NO_KERNEL = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Gelu(20) node with name 'g' "
    "for CUDAExecutionProvider"
)
OLD_DRIVER = f"{_CALL}CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version {_WHERE}"
NO_GPU = f"{_CALL}CUDA failure 101: invalid device ordinal {_WHERE}"
NO_LIBRARY = (
    "CUDA_PATH is set but CUDA wasnt able to be loaded. Please install the correct version of CUDA and cuDNN"
)

Open = Callable[[SimulatedCuda], OnnxRuntimeEngine]


@pytest.fixture
def open_decoder(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    bundle = open_bundle(small_bundle)
    part = bundle.manifest.parts["decoder"]

    def open_engine(cuda: SimulatedCuda) -> OnnxRuntimeEngine:
        cuda.install(monkeypatch)
        return OnnxRuntimeEngine(part, bundle.file(part.onnxruntime), CUDA, threads=1)

    return open_engine


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (NO_MEMORY, r"out of memory \(CUDA failure 2: out of memory\): ask for a smaller .* free the GPU$"),
        (NO_ARENA, r"out of memory \(Failed to allocate memory for requested buffer of size 1073741824\)"),
        (REFUSED, r"CUDA graph capture failed \(This session cannot .*\): leave cuda_graph out$"),
        (NO_KERNEL, r"cannot be loaded on cuda:0: .* Could not find an implementation for Gelu"),
    ],
)
def test_opening_fails(open_decoder: Open, raised: str, said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        open_decoder(SimulatedCuda(opening=raised))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert "nvidia-smi" not in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OLD_DRIVER, r"\(CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version\)"),
        (NO_GPU, r"\(CUDA failure 101: invalid device ordinal\)"),
        (NO_LIBRARY, r"\(CUDA_PATH is set but .*\)"),
    ],
)
def test_provider_that_does_not_start(open_decoder: Open, raised: str, said: str) -> None:
    with pytest.raises(
        MissingDependencyError,
        match=rf"could not start CUDA on cuda:0 {said}: check the driver .*nvidia-smi.*--device cpu$",
    ) as caught:
        open_decoder(SimulatedCuda(opening=raised))
    assert caught.value.exit_code == 6


def test_provider_that_is_left_out_without_a_word(open_decoder: Open) -> None:
    with pytest.raises(MissingDependencyError, match="its CUDA provider did not start"):
        open_decoder(SimulatedCuda(starts=False))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (NO_MEMORY, "out of memory .* ask for a smaller --size or batch"),
        (NO_ARENA, "out of memory .* ask for a smaller --size or batch"),
        (BROKEN, r"CUDA graph capture failed \(CUDA failure 901: .*\): leave cuda_graph out"),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : CUDA and more", "INVALID_ARGUMENT"),
    ],
)
def test_run_fails_and_the_next_one_does_not(open_decoder: Open, raised: str, said: str) -> None:
    """After a broken capture the next launch uses a new graph id."""
    cuda = SimulatedCuda()
    with open_decoder(cuda) as engine:
        session = engine.session({"B": 1, "h": 8, "w": 8})
        cuda.running.append(raised)
        with pytest.raises(EngineError, match=rf"^decoder at .* on cuda:0 failed: .*{said}") as caught:
            session.launch()
        assert caught.value.exit_code == 5
        session.launch()
        session.launch()
        assert np.isfinite(session.buffers["image"].read()).all()
    first, second, third = cuda.graph_ids
    assert first != second == third
