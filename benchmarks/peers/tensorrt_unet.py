"""Run a UNet with plain TensorRT on a torch stream. The engine is built at the first opening and then reused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.diffusers_pipeline import torch_dtype
from benchmarks.peers.job import Job


def runner(job: Job, path: Path) -> Callable[[Any, Any, Any], Any]:
    """Return ``run(sample, timestep, text)`` on GPU tensors."""
    import tensorrt as trt
    import torch

    logger = trt.Logger(trt.Logger.ERROR)
    engine_path = path.with_suffix(f".{trt.__version__}.engine")
    if not engine_path.exists():
        engine_path.write_bytes(_build(trt, logger, path))
    engine = trt.Runtime(logger).deserialize_cuda_engine(engine_path.read_bytes())
    if engine is None:
        raise RuntimeError(f"TensorRT {trt.__version__} cannot load its own engine")
    context = engine.create_execution_context()
    dtype = torch_dtype(job)
    output = torch.empty((2, *job.latent_shape[1:]), dtype=dtype, device="cuda")
    # On the default stream TensorRT would synchronise after every call.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(sample: Any, timestep: Any, text: Any) -> Any:
        inputs = {
            "sample": sample.to(dtype).contiguous(),
            "timestep": timestep.to("cuda", torch.float32),
            "text": text.to(dtype).contiguous(),
        }
        for name, tensor in (*inputs.items(), ("prediction", output)):
            context.set_tensor_address(name, tensor.data_ptr())
        stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the UNet")
        torch.cuda.current_stream().wait_stream(stream)
        # Keep the inputs allocated until the engine has read them.
        for tensor in inputs.values():
            tensor.record_stream(stream)
        return output.clone()

    return run


def _build(trt: Any, logger: Any, path: Path) -> bytes:
    builder = trt.Builder(logger)
    # TensorRT 11 is always strongly typed and has no such flag.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError(f"TensorRT cannot read the UNet: {parser.get_error(0).desc()}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError(f"TensorRT {trt.__version__} could not build the UNet's engine")
    return bytes(plan)
