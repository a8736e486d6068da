"""A TensorRT execution context: an engine at fixed shapes, using memory that the session owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd2rt.engines.bundle.schema import Part, shape_of
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.tensorrt.allocation import allocate
from sd2rt.engines.tensorrt.kernel_cache import KernelCache
from sd2rt.engines.tensorrt.trt_log import TrtLog


class TensorRtContext:
    """An execution context at fixed shapes; see :class:`sd2rt.engines.cuda.session.Executable`.

    Args:
        module: the backend; see :func:`sd2rt.engines.tensorrt.packages.load_module`.
        engine: the backend's ICudaEngine.
        part: the manifest entry of the compiled part.
        log: the log passed to the engine's runtime.
        kernels: the cache of kernels compiled by TensorRT for RTX; None for TensorRT.
        profile: index of a profile that takes the sizes.
        dims: the size of each of the part's symbols.
        device: the device to run on.

    Raises:
        RuntimeError: the backend failed; has the backend's reason.
    """

    def __init__(
        self,
        module: Any,
        engine: Any,
        part: Part,
        log: TrtLog,
        kernels: KernelCache | None,
        *,
        profile: int,
        dims: Mapping[str, int],
        device: CudaDevice,
    ) -> None:
        self._log, self._unsaved = log, kernels
        self._context = context = _create(module, engine, log, kernels, device)
        stream = device.stream
        self._check(
            context.set_optimization_profile_async(profile, stream),
            f"profile {profile} was refused",
        )
        for tensor in part.inputs:
            shape = shape_of(tensor, dims)
            self._check(context.set_input_shape(tensor.name, shape), f"{tensor.name} of {shape} was refused")
        missing = context.infer_shapes()
        self._check(not missing, f"the shapes of {', '.join(missing)} are not determined")
        for tensor in part.outputs:
            shape, expected = tuple(context.get_tensor_shape(tensor.name)), shape_of(tensor, dims)
            self._check(shape == expected, f"{tensor.name} has the shape {shape}, expected {expected}")
        self._workspace_bytes = int(context.update_device_memory_size_for_shapes())

    @property
    def workspace_bytes(self) -> int:
        return self._workspace_bytes

    def bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            self._check(self._context.set_tensor_address(name, address), f"the address of {name} was refused")

    def use_workspace(self, address: int, nbytes: int) -> None:
        self._context.set_device_memory(address, nbytes)

    def enqueue(self, stream: int) -> None:
        self._check(self._context.execute_async_v3(stream), "the execution cannot be enqueued")
        if self._unsaved is not None:
            # The first launch has compiled the kernels: save them now, in case the process is killed.
            self._unsaved.save()
            self._unsaved = None

    def capturable(self, stream: int) -> bool:
        # Only TensorRT for RTX has this query; a TensorRT engine at fixed shapes can be captured.
        query = getattr(self._context, "is_stream_capturable", None)
        return query is None or bool(query(stream))

    def close(self) -> None:
        self._context = None

    def _check(self, succeeded: bool, failure: str) -> None:
        if not succeeded:
            raise RuntimeError(f"{failure}: {self._log.take_error()}")


def _create(module: Any, engine: Any, log: TrtLog, kernels: KernelCache | None, device: CudaDevice) -> Any:
    config = engine.create_runtime_config()
    # Activations use the arena that all contexts of the device share.
    config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
    if kernels is not None:
        kernels.use_in(config)
    context, reason = allocate(device, log, lambda: engine.create_execution_context(config))
    if context is None:
        raise RuntimeError(reason)
    return context
