"""Run a UNet's ONNX file in ONNX Runtime, OpenVINO or TensorRT, on torch tensors.

Each runner takes the job and the file, and returns ``run(sample, timestep, text)``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.diffusers_pipeline import on_cpu, torch_dtype
from benchmarks.peers.job import Job, UnavailableError, require

Run = Callable[[Any, Any, Any], Any]


def check(job: Job) -> None:
    """Raise UnavailableError or ImportError if the job's runner cannot run."""
    runner = job.options["runner"]
    if runner == "openvino":
        from benchmarks.peers.openvino_pipeline import check_precision

        check_precision(job)
    elif runner == "tensorrt":
        require("tensorrt")
    else:
        import onnxruntime

        if _provider(job) not in onnxruntime.get_available_providers():
            raise UnavailableError(f"the installed ONNX Runtime has no {_provider(job)}")


def onnxruntime(job: Job, path: Path) -> Run:
    """ONNX Runtime at its defaults; GPU tensors stay on the GPU."""
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = ort.InferenceSession(path, options, providers=[_provider(job)])
    binding = session.io_binding()
    device, dtype = job.options.get("device", "cpu"), torch_dtype(job)
    kind = {torch.float32: 1, torch.float16: 10}  # onnx.TensorProto data types
    output = torch.empty((2, *job.latent_shape[1:]), dtype=dtype, device=device)

    def run(sample: Any, timestep: Any, text: Any) -> Any:
        # Keep the tensors alive during the run: ONNX Runtime holds only their addresses.
        inputs = {
            "sample": sample.to(dtype).contiguous(),
            "timestep": timestep.to(device, torch.float32),
            "text": text.to(dtype).contiguous(),
        }
        for name, tensor in inputs.items():
            binding.bind_input(name, device, 0, kind[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("prediction", device, 0, kind[dtype], tuple(output.shape), output.data_ptr())
        if device != "cpu":
            torch.cuda.current_stream().synchronize()
        session.run_with_iobinding(binding)
        return output.clone()

    return run


def openvino(job: Job, path: Path) -> Run:
    """OpenVINO's CPU plugin, which reads the ONNX file directly."""
    import openvino as ov
    import torch

    from benchmarks.peers.openvino_pipeline import settings

    compiled = ov.Core().compile_model(path, "CPU", settings(job))
    request = compiled.create_infer_request()

    def run(sample: Any, timestep: Any, text: Any) -> Any:
        inputs = (sample, timestep.to(torch.float32), text)
        outputs = request.infer([tensor.contiguous().numpy() for tensor in inputs], share_inputs=True)
        return torch.from_numpy(outputs[0].copy())

    return run


def tensorrt(job: Job, path: Path) -> Run:
    from benchmarks.peers.tensorrt_unet import runner

    return runner(job, path)


def _provider(job: Job) -> str:
    return "CPUExecutionProvider" if on_cpu(job) else "CUDAExecutionProvider"
