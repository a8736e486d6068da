"""`sd2rt doctor`: versions, devices, and backends of this machine; the one that a run would use, and why."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sd2rt.engines.bundle.cache import cache_dir, complete_bundle
from sd2rt.engines.cli.options import JsonOption
from sd2rt.engines.console import add_row, table_console
from sd2rt.engines.cuda.gpu_info import gpu_at_hand
from sd2rt.engines.errors import BundleError, MissingDependencyError, RequestError, Sd2rtError
from sd2rt.engines.install_hint import install_hint

if TYPE_CHECKING:
    from sd2rt.engines.bundle.engine_entry import EngineBackend
    from sd2rt.engines.bundle.manifest import Manifest

_PACKAGES = (
    *("sd2rt", "numpy", "pillow", "tokenizers", "pydantic", "typer", "rich"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-cu13", "tensorrt-lean-cu13", "tensorrt-rtx"),
    *("cuda-python", "cuda-core", "torch", "diffusers", "transformers", "onnx", "huggingface-hub"),
    *("starlette", "uvicorn"),
)
_VARIABLES = (
    "SD2RT_CACHE_DIR",
    "SD2RT_DEVICE",
    "SD2RT_BACKEND",
    "SD2RT_PRECISION",
    "SD2RT_THREADS",
    "SD2RT_DEBUG",
)
_MOST_GPUS = 16
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def doctor(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE]",
            help="A bundle whose engines count for the choice.",
            show_default=False,
            autocompletion=complete_bundle,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(envvar="SD2RT_DEVICE", help="The device of the run: cpu, cuda or cuda:N.")
    ] = "cpu",
    backend: Annotated[
        str, typer.Option(envvar="SD2RT_BACKEND", help="The backend that the run asks for.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            envvar="SD2RT_PRECISION", help="The precision that the run asks for.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Check what is installed, and say what a run would use. Exit code 6: nothing that it could."""
    backends = {name: _tried(load) for name, load in _LOADERS.items()}
    chosen, reason = _choice(bundle, device, backend, precision)
    problem = None if chosen is None else backends[chosen]["problem"]
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine().lower()}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "cpu": {"cores": len(os.sched_getaffinity(0)), "instructions": _instructions()},
        "gpus": [
            {"name": gpu.name, "compute_capability": gpu.compute_capability, "driver": gpu.driver}
            for index in range(_MOST_GPUS)
            if (gpu := gpu_at_hand(index)) is not None
        ],
        "backends": backends,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "cache": _cache(),
        "choice": {"backend": chosen, "device": device, "reason": reason, "problem": problem},
    }
    print(json.dumps(facts)) if as_json else _show(facts)
    return MissingDependencyError.exit_code if chosen is None or problem is not None else 0


def _onnxruntime(device: str) -> Callable[[], Any]:
    def load() -> Any:
        from sd2rt.engines.interface import Device
        from sd2rt.engines.onnxruntime.opening import import_onnxruntime

        return import_onnxruntime(Device(device))

    return load


def _openvino() -> Any:
    from sd2rt.engines.telemetry import import_without_telemetry

    try:
        return import_without_telemetry("openvino")
    except ImportError:
        raise MissingDependencyError(f"OpenVINO is not installed: {install_hint('openvino')}") from None


def _tensorrt(backend: EngineBackend, portable: bool = False) -> Callable[[], Any]:
    def load() -> Any:
        from sd2rt.engines.tensorrt.packages import load_module

        return load_module(backend, portable)

    return load


_LOADERS: dict[str, Callable[[], Any]] = {
    "onnxruntime on cpu": _onnxruntime("cpu"),
    "onnxruntime on cuda": _onnxruntime("cuda"),
    "openvino": _openvino,
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt (lean)": _tensorrt("tensorrt", portable=True),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
}


def _tried(load: Callable[[], Any]) -> dict[str, str | None]:
    try:
        return {"version": str(load().__version__), "problem": None}
    except Sd2rtError as error:
        return {"version": None, "problem": str(error)}
    except Exception as error:
        # A broken installation fails in any way; this command is for finding that out.
        return {"version": None, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _choice(bundle: str | None, device: str, backend: str, precision: str | None) -> tuple[str | None, str]:
    """Return the backend that a run with these options would use, and the reason.

    Raises:
        RequestError: the device or the backend is unknown.
        BundleError: there is no such bundle.
    """
    from sd2rt.engines.backends import backends_to_try
    from sd2rt.engines.bundle.engine_entry import BackendName
    from sd2rt.engines.bundle.manifest import read_manifest
    from sd2rt.engines.bundle.reader import locate
    from sd2rt.engines.bundle.schema import ComputePrecision
    from sd2rt.engines.interface import Device
    from sd2rt.engines.near_matches import did_you_mean

    parsed, known = Device(device), get_args(BackendName)
    name: BackendName | None = next((each for each in known if each == backend), None)
    if name is None:
        raise RequestError(
            f"no backend is named {backend!r}: {did_you_mean(backend, known)}choose one of {', '.join(known)}"
        )
    path = None if bundle is None else locate(bundle)
    manifest = None if path is None else read_manifest(path)
    has_engines = manifest is not None and bool(manifest.engines)
    # Other precisions are those of bundles, and ask for no backend.
    computed: ComputePrecision | None = next((p for p in get_args(ComputePrecision) if p == precision), None)
    try:
        names = backends_to_try(parsed, name, computed, has_engines=has_engines)
    except RequestError as error:
        return None, str(error)
    if path is not None and manifest is not None and len(names) > 1:
        return _by_engines(path, manifest, parsed.index)
    (only,) = names
    chosen = f"onnxruntime on {parsed.kind}" if only == "onnxruntime" else only
    if only == name:
        return chosen, "asked for"
    if only == "openvino":
        return chosen, "bf16 on a CPU needs it"
    if parsed.kind == "cpu":
        return chosen, "the default on CPUs"
    return chosen, f"the default on GPUs for {'bundles' if path is None else 'a bundle'} without engines"


def _by_engines(path: Path, manifest: Manifest, index: int) -> tuple[str, str]:
    """Return the backend whose engines fit this GPU, or ONNX Runtime with the reason."""
    from sd2rt.engines.bundle.engine_entry import EngineBackend
    from sd2rt.engines.bundle.model_kinds import EAGER_PARTS
    from sd2rt.engines.tensorrt.selection import select_engines

    gpu = gpu_at_hand(index)
    if gpu is None:
        return "onnxruntime on cuda", "no GPU can be asked for the bundle's engines"
    reasons = []
    for backend in get_args(EngineBackend):
        try:
            module, _ = select_engines(path, manifest, backend, gpu, EAGER_PARTS)
        except (BundleError, MissingDependencyError) as error:
            if any(entry.backend == backend for entry in manifest.engines):
                reasons.append(str(error))
            continue
        lean = " (lean)" if module.__name__ == "tensorrt_lean" else ""
        return backend + lean, "the bundle's engines of all parts that a run needs fit this GPU"
    return "onnxruntime on cuda", "; ".join(reasons)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _instructions() -> list[str]:
    """Instruction sets of this CPU that matter for speed, of those that are known here."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(errors="replace").split())
    except OSError:
        return []
    return [name for name in _INSTRUCTIONS if name in flags]


def _cache() -> dict[str, Any]:
    try:
        root = cache_dir()
    except BundleError as error:
        return {"path": None, "problem": str(error)}
    existing = next(path for path in (root, *root.absolute().parents) if os.path.lexists(path))
    writable = os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)
    return {"path": str(root), "problem": None if writable else f"{existing} cannot be written to"}


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console(120)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    cpu, cache = facts["cpu"], facts["cache"]
    gpus = [f"{gpu['name']}, sm_{gpu['compute_capability']}, {gpu['driver']}" for gpu in facts["gpus"]]
    variables = (f"{name}={value}" for name, value in facts["environment"].items())
    add_row(table, "Python", f"{facts['python']} on {facts['platform']}")
    add_row(table, "packages", packages)
    add_row(table, "CPU", f"{cpu['cores']} cores; {', '.join(cpu['instructions']) or 'no AVX2'}")
    add_row(table, "GPUs", "; ".join(gpus) or "none that CUDA finds")
    add_row(table, "cache", cache["path"] if cache["problem"] is None else cache["problem"])
    add_row(table, "environment", ", ".join(variables) or "no variables of sd2rt")
    for name, state in facts["backends"].items():
        add_row(table, name, state["version"] if state["problem"] is None else f"no: {state['problem']}")
    choice = facts["choice"]
    answer = "nothing" if choice["backend"] is None else choice["backend"]
    problem = "" if choice["problem"] is None else ", which cannot be loaded"
    add_row(table, "a run uses", f"{answer}{problem} ({choice['reason']})")
    console.print(table)
