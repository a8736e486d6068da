"""Compile a part's ONNX graph to an engine with TensorRT, or with TensorRT for RTX, which needs no GPU to build."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sd2rt.engines.bundle.engine_entry import Profile
from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.bundle.schema import Part, Tensor, shape_of, symbols_of
from sd2rt.engines.cuda.gpu_info import gpu_at_hand, sm_number
from sd2rt.engines.errors import BuildError, MissingDependencyError
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.tensorrt.compile.checks import (
    check_attention,
    check_engine,
    check_network,
    needs_fused_attention,
)
from sd2rt.engines.tensorrt.compile.layer_report import inspect_engine, parse_log
from sd2rt.engines.tensorrt.compile.targets import capabilities_of, targets_of
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask, Built
from sd2rt.engines.tensorrt.packages import load_module
from sd2rt.engines.tensorrt.profile_shapes import profile_shapes
from sd2rt.engines.tensorrt.trt_log import TrtLog, open_log
from sd2rt.engines.weights.initializers import Weights

Progress = Callable[[float], None]

_MAX_TIMING_CACHE_BYTES = 256 << 20


def compile_engine(task: BuildTask, progress: Progress = lambda fraction: None) -> Built:
    """Compile the engine of a task and write it to the task's target, with a JSON report beside it.

    Before the engine is written, its inputs, outputs and profiles are compared with the manifest, and its dedicated
    attention kernels are counted.

    Raises:
        BuildError: the backend refused the graph, found no kernels, or built an engine that differs from the task.
        RequestError: the backend does not support the options.
        MissingDependencyError: the backend is not installed, or needs a GPU and there is none.
    """
    began = time.perf_counter()
    trt, options = load_module(task.options.backend), task.options
    log = open_log(trt, record=True)
    gpu = gpu_at_hand()
    targets = targets_of(trt, options, gpu)
    builder = trt.Builder(log)
    if builder is None:
        raise MissingDependencyError(
            f"{options.backend} did not start ({log.take_error()}): check the driver"
        )
    network = builder.create_network(0)
    # The network points into these objects until the build ends.
    held = _parse(trt, network, log, task)
    check_network(network, task.part)
    attentions = _attentions(trt, network)
    fuse = needs_fused_attention(task)
    for layer in attentions:
        layer.attention.decomposable = not fuse
    config = builder.create_builder_config()
    flags = _configure(trt, config, network, task, targets)
    for profile in _pin(builder, network, task.part, task.profiles):
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{task.name}: {options.backend} refused a profile: {log.take_error()}")
    config.progress_monitor = _make_monitor(trt, progress)
    cache = _timing_cache(config, task)
    # Discard the error that a refused cache has logged.
    log.take_error()
    plan = builder.build_serialized_network(network, config)
    held.clear()
    if plan is None:
        raise BuildError(_failure(task, log.take_error(None)))
    logged = parse_log(log.layer_lists)
    report = inspect_engine(trt, log, plan, task.name) if logged is None else logged
    check_engine(report, task)
    # Only TensorRT for RTX logs its layers. Layers that an inspector reads from a TensorRT engine are of one profile
    # and their kernel names are unverified, but TensorRT itself refuses attention without a dedicated kernel.
    if fuse and logged is not None:
        check_attention(task, len(attentions), report.fused_attention)
    _write(Path(task.target), plan)
    if cache is not None and task.timing_cache is not None:
        # Without the cache the next build measures its kernels again.
        with contextlib.suppress(OSError):
            _write(Path(task.timing_cache), config.get_timing_cache().serialize())
    built = Built(
        version=trt.__version__,
        compute_capabilities=capabilities_of(options, targets, gpu),
        hardware_compatible=options.portable,
        version_compatible=options.portable and options.backend == "tensorrt",
        gpu=None if gpu is None else gpu.name,
        driver=None if gpu is None else gpu.driver,
        flags=flags,
        attentions=len(attentions),
        fused=report.fused_attention,
        layers=len(report.layers),
        seconds=round(time.perf_counter() - began, 2),
        # Linux reports kilobytes.
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    content = {"built": built.model_dump(mode="json"), "log": log.messages, **report.as_dict()}
    Path(f"{task.target}.json").write_text(json.dumps(content, indent=0) + "\n")
    return built


def _parse(trt: Any, network: Any, log: TrtLog, task: BuildTask) -> dict[str, Any]:
    """Read the graph into the network; return the parser and arrays that the network points into."""
    parser = trt.OnnxParser(network, log)
    held: dict[str, Any] = {}
    if task.replaced is None:
        parsed = parser.parse_from_file(task.onnx)
    else:
        parsed = parser.load_model_proto(Path(task.onnx).read_bytes(), task.onnx)
        with np.load(task.replaced, allow_pickle=False) as arrays:
            held = {name: np.ascontiguousarray(arrays[name]) for name in arrays.files}
        for name, array in held.items():
            if not parser.load_initializer(name, array.ctypes.data, array.nbytes):
                raise BuildError(f"{task.name}: {name} cannot be replaced ({log.take_error()})")
        parsed = parsed and parser.parse_model_proto()
    if not parsed:
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        reason = " ".join((errors or [log.take_error()])[0].split())[:300]
        raise BuildError(f"{task.name}: {task.options.backend} cannot read {task.onnx}: {reason}")
    held["parser"] = parser
    return held


def _attentions(trt: Any, network: Any) -> list[Any]:
    attentions = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # get_layer returns the base class; the binding downcasts by assigning __class__.
            layer.__class__ = trt.IAttentionInputLayer
            attentions.append(layer)
    return attentions


def _configure(
    trt: Any, config: Any, network: Any, task: BuildTask, targets: tuple[str, ...]
) -> tuple[str, ...]:
    """Set all options except the profiles; return the names of what was set."""
    options, settings = task.options, []
    # TF32 would round the float32 islands to ten bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if targets and options.backend == "tensorrt-rtx":
        config.num_compute_capabilities = len(targets)
        for index, capability in enumerate(targets):
            member = getattr(trt.ComputeCapability, f"SM{sm_number(capability)}")
            config.set_compute_capability(member, index)
    flags = []
    if options.backend == "tensorrt-rtx":
        # Otherwise a launch may allocate memory, which cannot be captured in a CUDA graph.
        flags.append("REQUIRE_USER_ALLOCATION")
    if options.portable and options.backend == "tensorrt":
        # Leave out the lean runtime, as engines must not contain host code. The installed TensorRT or lean runtime
        # of the same version runs the engine.
        flags += ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"]
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        settings.append("AMPERE_PLUS")
    flags += {"no": [], "all": ["REFIT"], "individual": ["REFIT_INDIVIDUAL"]}.get(
        options.refit, ["REFIT_IDENTICAL", "STRIP_PLAN"]
    )
    for name in flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if options.refit == "individual":
        _mark_refittable(network, task)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        settings.append(f"workspace={options.workspace_bytes}")
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        settings.append(f"optimization_level={options.optimization_level}")
    if options.allow_decomposed:
        settings.append("allow_decomposed")
    return (*flags, *settings)


def _mark_refittable(network: Any, task: BuildTask) -> None:
    """Mark the weights that a LoRA can change: those with at least two axes."""
    weights = Weights.of(task.part, Path(task.onnx))
    for name, weight in weights.items():
        if len(weight.shape) >= 2 and not network.mark_weights_refittable(weight.initializer):
            raise BuildError(
                f"{task.name}: {task.options.backend} cannot make {name} refittable: build with --refit all"
            )


def _pin(builder: Any, network: Any, part: Part, profiles: Sequence[Profile]) -> Iterator[Any]:
    """Fix the dimensions that have one size in all profiles, and create optimisation profiles for the others."""
    fixed = {
        symbol: profiles[0].dims[symbol][0]
        for symbol in symbols_of(part)
        if len({size for profile in profiles for size in profile.dims[symbol]}) == 1
    }
    inputs = {tensor.name: tensor for tensor in part.inputs}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        tensor.shape = _shape(inputs[tensor.name], fixed)
    # An engine needs a profile even if all its dimensions are fixed.
    for profile in profiles:
        optimization_profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            if -1 in tuple(tensor.shape):
                optimization_profile.set_shape(tensor.name, *profile_shapes(inputs[tensor.name], profile))
        yield optimization_profile


def _shape(tensor: Tensor, fixed: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape, with -1 for dimensions that are not fixed."""
    shape: list[int] = []
    for item in tensor.shape:
        try:
            shape += shape_of(tensor.model_copy(update={"shape": (item,)}), fixed)
        except ValueError:
            shape.append(-1)
    return tuple(shape)


def _failure(task: BuildTask, reason: str) -> str:
    backend = task.options.backend
    if "not supported by a dedicated kernel" in reason:
        return (
            f"{task.name}: {backend} has no dedicated kernel for an attention layer at these sizes: "
            "--allow-decomposed builds it from several slower kernels"
        )
    if "workspace" in reason.lower() and task.options.workspace_bytes is not None:
        return f"{task.name}: {backend} found no kernels that fit a workspace of {task.options.workspace_bytes} bytes"
    return f"{task.name}: {backend} could not build it: {reason[:300]}"


def _timing_cache(config: Any, task: BuildTask) -> Any:
    """Load the kernel timings of earlier builds; None for TensorRT for RTX, which does not time kernels."""
    if task.options.backend != "tensorrt" or task.timing_cache is None:
        return None
    content = b""
    with contextlib.suppress(OSError):
        content = read_regular(task.timing_cache, _MAX_TIMING_CACHE_BYTES)
    cache = config.create_timing_cache(content)
    # A cache of another GPU or version is refused: start a new one.
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _make_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Converts nested phases to one fraction."""

        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, list[int]] = {}  # steps done, steps in all
            self._order: list[str] = []

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._phases[name] = [0, max(steps, 1)]
            self._order.append(name)
            self._report()

        def step_complete(self, name: str, step: int) -> bool:
            if name in self._phases:
                self._phases[name][0] = step + 1
                self._report()
            return True

        def phase_finish(self, name: str) -> None:
            if name in self._phases:
                del self._phases[name]
                self._order.remove(name)

        def _report(self) -> None:
            fraction, share = 0.0, 1.0
            for name in self._order:
                done, steps = self._phases[name]
                fraction += share * min(done, steps) / steps
                share /= steps
            progress(min(fraction, 1.0))

    return Monitor()
