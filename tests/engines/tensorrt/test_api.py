"""Every builder and runtime name that sd2rt uses exists in the installed packages."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sd2rt.engines.tensorrt import context, engine, engine_header, kernel_cache, trt_log
from sd2rt.engines.tensorrt.compile import checks, compiler, layer_report, targets
from sd2rt.engines.tensorrt.packages import DTYPES

from ..simulated_gpu import SimulatedGpu
from ..simulated_tensorrt import make_tensorrt

BUILDER = (compiler, checks, layer_report, targets)
RUNTIME = (engine, context, engine_header, kernel_cache, trt_log)
BUILDER_ONLY = {"OnnxParserRefitter"}
"""Runtime names that packages without a builder lack; engines that need them are refused there."""


def sources(modules: Sequence[ModuleType]) -> str:
    return "\n".join(Path(str(module.__file__)).read_text() for module in modules)


def names(modules: Sequence[ModuleType]) -> set[str]:
    """Every dotted name on ``trt``, ``self._trt`` or ``module``, such as ``BuilderFlag.TF32``."""
    found = set()
    for node in (node for module in modules for node in ast.walk(ast.parse(sources([module])))):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in ("trt", "self", "module"):
            parts.reverse()
            if node.id == "self":
                if parts[0] != "_trt":
                    continue
                parts = parts[1:]
            if parts and not parts[0].startswith("__"):
                found.add(".".join(parts))
    return found


def missing(package: Any, dotted: set[str]) -> list[str]:
    lost = []
    for name in sorted(dotted):
        at = package
        for part in name.split("."):
            at = getattr(at, part, None)
        if at is None:
            lost.append(name)
    return lost


def test_the_builder_is_there() -> None:
    used = names(BUILDER)
    assert {"Builder", "OnnxParser", "BuilderFlag.TF32", "LayerType.ATTENTION_INPUT", "Runtime"} <= used
    assert missing(pytest.importorskip("tensorrt_rtx"), used) == []


@pytest.mark.parametrize("package", ["tensorrt_rtx", "tensorrt_lean"])
def test_the_runtime_is_there(package: str) -> None:
    used = names(RUNTIME)
    assert {"Runtime", "Refitter", "Weights"} <= used
    module = pytest.importorskip(package)
    rtx_only = {name for name in used if name.split(".")[0] in _RTX_ALONE}
    lacking = set() if package == "tensorrt_rtx" else rtx_only | BUILDER_ONLY
    assert missing(module, used - lacking) == []
    if package == "tensorrt_lean":
        assert missing(module, BUILDER_ONLY) == sorted(BUILDER_ONLY)


def test_host_code_stays_forbidden() -> None:
    folder = Path(str(engine.__file__)).parent
    assert "engine_host_code_allowed" not in "".join(path.read_text() for path in folder.rglob("*.py"))


METHODS = {
    "Builder": {
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    },
    "IBuilderConfig": {
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "create_timing_cache",
        "get_timing_cache",
        "hardware_compatibility_level",
        "num_compute_capabilities",
        "profiling_verbosity",
        "progress_monitor",
        "set_compute_capability",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    },
    "INetworkDefinition": {
        "get_input",
        "get_layer",
        "get_output",
        "mark_weights_refittable",
        "num_inputs",
        "num_layers",
    },
    "OnnxParser": {
        "get_error",
        "load_initializer",
        "load_model_proto",
        "num_errors",
        "parse_from_file",
        "parse_model_proto",
    },
    "IOptimizationProfile": {"set_shape"},
    "IAttention": {"decomposable"},
    "ICudaEngine": {
        "create_engine_inspector",
        "get_tensor_dtype",
        "get_tensor_profile_shape",
        "num_io_tensors",
    },
    "EngineInspector": {"get_engine_information"},
    "Refitter": {"get_missing_weights", "refit_cuda_engine_async", "set_named_weights"},
    "OnnxParserRefitter": {"refit_from_file"},
}
"""Methods of the builder's and refitter's classes."""


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_are_there(name: str) -> None:
    module = pytest.importorskip("tensorrt_rtx")
    assert METHODS[name] <= set(dir(getattr(module, name)))
    source = sources([*BUILDER, *RUNTIME])
    # Methods that are no longer called must not be listed.
    assert all(f".{method}" in source for method in METHODS[name])


@pytest.mark.parametrize("name", ["Refitter", "ICudaEngine"])
def test_the_runtimes_methods_are_there_in_the_lean_one(name: str) -> None:
    module = pytest.importorskip("tensorrt_lean")
    assert METHODS[name] <= set(dir(getattr(module, name)))


@pytest.mark.parametrize(
    "flag", ["REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL", "STRIP_PLAN", "VERSION_COMPATIBLE"]
)
def test_the_flags_are_there(flag: str) -> None:
    for package in ("tensorrt_rtx", "tensorrt_lean"):
        assert hasattr(pytest.importorskip(package).BuilderFlag, flag)


_HOLDERS = {
    "trt": None,
    "module": None,
    "runtime": "Runtime",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "_cache": "IRuntimeCache",
}
"""Variable names of TensorRT objects in the runtime's modules, and the objects' classes."""
_RTX_ALONE = {
    "CudaGraphStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "engine_header_size",
    "get_engine_validity",
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
    for node in (node for module in RUNTIME for node in ast.walk(ast.parse(sources([module])))):
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
    assert {"ERROR", "INTERNAL_ERROR", "VERBOSE"} <= set(dir(module.ILogger))
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
