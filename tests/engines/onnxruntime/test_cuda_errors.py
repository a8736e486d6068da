"""ONNX Runtime's CUDA errors become one line with an exit code; a full GPU is not reported as a missing driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import EngineError, MissingDependencyError
from sd2rt.engines.onnxruntime.cuda_engine import OnnxRuntimeCudaEngine

from .cuda_engines import open_on_cuda
from .simulated_cuda import CAPTURE_REFUSED, SimulatedCuda

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
NO_KERNEL = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Gelu(20) node with name 'g' "
    "for CUDAExecutionProvider"
)
OLD_DRIVER = f"{_CALL}CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version {_WHERE}"
NO_GPU = f"{_CALL}CUDA failure 101: invalid device ordinal {_WHERE}"
NO_LIBRARY = (
    "CUDA_PATH is set but CUDA wasnt able to be loaded. Please install the correct version of CUDA and cuDNN"
)

Open = Callable[[SimulatedCuda], AbstractContextManager[OnnxRuntimeCudaEngine]]


@pytest.fixture
def open_decoder(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    def open_engine(cuda: SimulatedCuda) -> AbstractContextManager[OnnxRuntimeCudaEngine]:
        cuda.install(monkeypatch)
        return open_on_cuda(small_bundle, "decoder")

    return open_engine


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (NO_MEMORY, r"out of memory \(CUDA failure 2: out of memory\): ask for a smaller .* free the GPU$"),
        (NO_ARENA, r"out of memory \(Failed to allocate memory for requested buffer of size 1073741824\)"),
        (CAPTURE_REFUSED, r"CUDA graph capture failed \(This session cannot .*\): leave cuda_graph out$"),
        (NO_KERNEL, r"cannot be loaded on cuda:0: .* Could not find an implementation for Gelu"),
    ],
)
def test_opening_fails(open_decoder: Open, raised: str, said: str) -> None:
    with (
        pytest.raises(EngineError, match=said) as caught,
        open_decoder(SimulatedCuda(opening=raised)),
    ):
        pass
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
    with (
        pytest.raises(
            MissingDependencyError,
            match=rf"could not start CUDA on cuda:0 {said}: check the driver .*nvidia-smi.*--device cpu$",
        ) as caught,
        open_decoder(SimulatedCuda(opening=raised)),
    ):
        pass
    assert caught.value.exit_code == 6


def test_provider_that_is_left_out_without_a_word(open_decoder: Open) -> None:
    with (
        pytest.raises(MissingDependencyError, match="its CUDA provider did not start"),
        open_decoder(SimulatedCuda(starts=False)),
    ):
        pass


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            NO_MEMORY,
            r"out of memory: \(CUDA failure 2: out of memory\), .* free on cuda:0: ask for a smaller",
        ),
        (NO_ARENA, r"out of memory: \(Failed to allocate memory .*\), .* free on cuda:0: ask for a smaller"),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : CUDA and more", "INVALID_ARGUMENT"),
    ],
)
def test_run_fails_and_the_next_one_does_not(open_decoder: Open, raised: str, said: str) -> None:
    cuda = SimulatedCuda()
    with open_decoder(cuda) as engine:
        session = engine.session({"B": 1, "h": 8, "w": 8})
        cuda.running.append(raised)
        with pytest.raises(EngineError, match=rf"^decoder at .* on cuda:0: .*{said}") as caught:
            session.launch()
        assert caught.value.exit_code == 5
        assert "\n" not in str(caught.value)
        session.launch()
        session.launch()
        assert np.isfinite(session.buffers["image"].read()).all()


def test_error_that_the_device_does_not_survive(open_decoder: Open) -> None:
    cuda = SimulatedCuda()
    with open_decoder(cuda) as engine:
        session = engine.session({"B": 1, "h": 8, "w": 8})
        cuda.running.append(f"{_CALL}CUDA failure 700: an illegal memory access was encountered {_WHERE}")
        cuda.gpu.fault = "CUDA_ERROR_ILLEGAL_ADDRESS"
        for _ in range(2):
            with pytest.raises(EngineError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"):
                session.launch()


def test_tensors_that_differ_from_the_manifest(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedCuda().install(monkeypatch)
    with open_on_cuda(small_bundle, "decoder") as engine:
        with pytest.raises(EngineError, match=r"cannot be prepared: .* has the dimension 'w'"):
            engine.session({"B": 1, "h": 8})
        engine.part = open_bundle(small_bundle).part("encoder")
        with pytest.raises(EngineError, match=r"cannot be prepared: .*no such tensor"):
            engine.session({"B": 1, "h": 8, "w": 8})
