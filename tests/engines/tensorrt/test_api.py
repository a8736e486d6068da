"""No call of the builder's or the runtime's is made up: the names exist in the packages that are installed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import sd2rt.engines.tensorrt.compile.compiler as builder
import sd2rt.engines.tensorrt.engine as runtime

BUILDER_ONLY = {"OnnxParserRefitter"}
"""Of the runtime's names, those that a package without a builder lacks; the engines that need it are its own."""


def names(module: Any) -> set[str]:
    """Every dotted name on ``trt``, ``self._trt`` or ``module`` in a file, such as ``BuilderFlag.TF32``."""
    assert module.__file__ is not None
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
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
    used = names(builder)
    assert {"Builder", "OnnxParser", "BuilderFlag.TF32", "LayerType.ATTENTION_INPUT"} <= used
    assert missing(pytest.importorskip("tensorrt_rtx"), used) == []


@pytest.mark.parametrize("package", ["tensorrt_rtx", "tensorrt_lean"])
def test_the_runtime_is_there(package: str) -> None:
    used = names(runtime)
    assert {"Runtime", "Refitter", "Weights"} <= used
    module = pytest.importorskip(package)
    rtx_only = {name for name in used if name.startswith(("CudaGraphStrategy", "DynamicShapes"))}
    lacking = set() if package == "tensorrt_rtx" else rtx_only | BUILDER_ONLY
    assert missing(module, used - lacking) == []


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
"""Of the objects that the builder and a refit work with."""


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_are_there(name: str) -> None:
    module = pytest.importorskip("tensorrt_rtx")
    assert METHODS[name] <= set(dir(getattr(module, name)))
    source = "".join(Path(str(part.__file__)).read_text() for part in (builder, runtime))
    # A method that is no longer called is no longer to be listed.
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
