"""A part's ONNX into an engine, by TensorRT or TensorRT for RTX; the latter needs no GPU for it."""

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
from sd2rt.engines.bundle.schema import Part, Tensor
from sd2rt.engines.bundle.shapes import shape_of, symbols_of
from sd2rt.engines.cuda.gpu_info import gpu_at_hand, sm_number
from sd2rt.engines.errors import BuildError, MissingDependencyError
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


def compile_engine(task: BuildTask, progress: Progress = lambda fraction: None) -> Built:
    """Write the engine of a task to its target, and what it is made of beside it.

    The engine's inputs, outputs and profiles are compared with the manifest's before it is written, and its
    attention kernels are counted.

    Raises:
        BuildError: the backend refused the graph or found no kernels, or built something other than was asked.
        RequestError: the options ask for what the backend cannot do.
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
    # What was handed to the parser by address must outlive the build.
    kept = _parse(trt, network, log, task)
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
    # A cache that was refused is no reason for what may fail from here on.
    log.take_error()
    plan = builder.build_serialized_network(network, config)
    kept.clear()
    if plan is None:
        raise BuildError(_failure(task, log.take_error(None)))
    logged = parse_log(log.layer_lists)
    report = inspect_engine(trt, log, plan, task.name) if logged is None else logged
    check_engine(report, task)
    # Layers that are read out of an engine are those of one profile, and TensorRT may call its kernels otherwise:
    # it refuses attention that it has no kernel for by itself, which has to do until a GPU has shown more.
    if fuse and logged is not None:
        check_attention(task, len(attentions), report.fused_attention)
    _write(Path(task.target), plan)
    if cache is not None and task.timing_cache is not None:
        # A cache that cannot be written costs time at the next build, nothing else.
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
        # Kilobytes on Linux.
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    told = {"built": built.model_dump(mode="json"), "log": log.messages, **report.as_dict()}
    Path(f"{task.target}.json").write_text(json.dumps(told, indent=0) + "\n")
    return built


def _parse(trt: Any, network: Any, log: TrtLog, task: BuildTask) -> dict[str, Any]:
    """Read the graph into the network; the arrays returned are those that it points into."""
    parser = trt.OnnxParser(network, log)
    kept: dict[str, Any] = {}
    if task.replaced is None:
        parsed = parser.parse_from_file(task.onnx)
    else:
        parsed = parser.load_model_proto(Path(task.onnx).read_bytes(), task.onnx)
        with np.load(task.replaced, allow_pickle=False) as arrays:
            kept = {name: np.ascontiguousarray(arrays[name]) for name in arrays.files}
        for name, array in kept.items():
            if not parser.load_initializer(name, array.ctypes.data, array.nbytes):
                raise BuildError(f"{task.name}: {name} cannot be replaced ({log.take_error()})")
        parsed = parsed and parser.parse_model_proto()
    if not parsed:
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        reason = " ".join((errors or [log.take_error()])[0].split())[:300]
        raise BuildError(f"{task.name}: {task.options.backend} cannot read {task.onnx}: {reason}")
    kept["parser"] = parser
    return kept


def _attentions(trt: Any, network: Any) -> list[Any]:
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # Python sees the base class; this is how the binding lets it see the layer's own.
            layer.__class__ = trt.IAttentionInputLayer
            found.append(layer)
    return found


def _configure(
    trt: Any, config: Any, network: Any, task: BuildTask, targets: tuple[str, ...]
) -> tuple[str, ...]:
    """Set what is not a profile; what was set, by name."""
    options, said = task.options, []
    # TF32 would cost the float32 islands ten bits of their mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if targets and options.backend == "tensorrt-rtx":
        config.num_compute_capabilities = len(targets)
        for index, capability in enumerate(targets):
            member = getattr(trt.ComputeCapability, f"SM{sm_number(capability)}")
            config.set_compute_capability(member, index)
    wanted = []
    if options.backend == "tensorrt-rtx":
        # Without it a launch may allocate, and then no CUDA graph can be captured of it.
        wanted.append("REQUIRE_USER_ALLOCATION")
    if options.portable and options.backend == "tensorrt":
        # Without the runtime that would be packed into it: that is code, which no engine is to bring. The lean
        # runtime of the same version, or TensorRT itself, runs what is left.
        wanted += ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"]
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        said.append("AMPERE_PLUS")
    wanted += {"no": [], "all": ["REFIT"], "individual": ["REFIT_INDIVIDUAL"]}.get(
        options.refit, ["REFIT_IDENTICAL", "STRIP_PLAN"]
    )
    for name in wanted:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if options.refit == "individual":
        _mark_refittable(network, task)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        said.append(f"workspace={options.workspace_bytes}")
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        said.append(f"optimization_level={options.optimization_level}")
    if options.allow_decomposed:
        said.append("allow_decomposed")
    return (*wanted, *said)


def _mark_refittable(network: Any, task: BuildTask) -> None:
    """Mark what a LoRA can change: the weights that have two axes or more."""
    weights = Weights.of(task.part, Path(task.onnx))
    for name, weight in weights.items():
        if len(weight.shape) >= 2 and not network.mark_weights_refittable(weight.initializer):
            raise BuildError(
                f"{task.name}: {task.options.backend} cannot have {name} replaced: build with --refit all"
            )


def _pin(builder: Any, network: Any, part: Part, profiles: Sequence[Profile]) -> Iterator[Any]:
    """Fix in the network what all profiles have as one number, and make the rest optimisation profiles."""
    fixed = {
        symbol: profiles[0].dims[symbol][0]
        for symbol in symbols_of(part)
        if len({size for profile in profiles for size in profile.dims[symbol]}) == 1
    }
    inputs = {tensor.name: tensor for tensor in part.inputs}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        tensor.shape = _shape(inputs[tensor.name], fixed)
    # Where nothing is left open there is nothing to say, but an engine has a profile at any rate.
    for profile in profiles:
        made = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            if -1 in tuple(tensor.shape):
                made.set_shape(tensor.name, *profile_shapes(inputs[tensor.name], profile))
        yield made


def _shape(tensor: Tensor, fixed: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with -1 for what is not fixed."""
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
            "--allow-decomposed builds it of several kernels, slower"
        )
    if "workspace" in reason.lower() and task.options.workspace_bytes is not None:
        return f"{task.name}: {backend} finds no kernels within a workspace of {task.options.workspace_bytes} bytes"
    return f"{task.name}: {backend} could not build it: {reason[:300]}"


def _timing_cache(config: Any, task: BuildTask) -> Any:
    """What earlier builds measured, where the backend measures: TensorRT for RTX chooses kernels without."""
    if task.options.backend != "tensorrt" or task.timing_cache is None:
        return None
    known = b""
    with contextlib.suppress(OSError):
        known = Path(task.timing_cache).read_bytes()
    cache = config.create_timing_cache(known)
    # Of another GPU or version: a new one then, the old measurements say nothing here.
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
        """Turns nested phases into one fraction."""

        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, list[int]] = {}  # steps done, steps in all
            self._order: list[str] = []

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._phases[name] = [0, max(steps, 1)]
            self._order.append(name)
            self._tell()

        def step_complete(self, name: str, step: int) -> bool:
            if name in self._phases:
                self._phases[name][0] = step + 1
                self._tell()
            return True

        def phase_finish(self, name: str) -> None:
            if name in self._phases:
                del self._phases[name]
                self._order.remove(name)

        def _tell(self) -> None:
            fraction, share = 0.0, 1.0
            for name in self._order:
                done, steps = self._phases[name]
                fraction += share * min(done, steps) / steps
                share /= steps
            progress(min(fraction, 1.0))

    return Monitor()
