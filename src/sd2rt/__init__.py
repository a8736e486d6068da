"""Run Stable Diffusion 2 from prebuilt engines: the runtime's public names and all errors.

from sd2rt import Pipeline

with Pipeline.open("bundle") as pipe:
    image = pipe("a photograph of an astronaut riding a horse", seed=1).images[0]
"""

from __future__ import annotations

TYPE_CHECKING = False  # Not imported: the `sd2rt` command imports nothing before it can be interrupted.

if TYPE_CHECKING:
    from typing import Any

    from sd2rt.engines.errors import (
        BuildError,
        BundleError,
        CheckpointError,
        EngineError,
        MissingDependencyError,
        NotFiniteError,
        OutOfMemoryError,
        RequestError,
        Sd2rtError,
        UnsafeContentError,
    )
    from sd2rt.runtime import (
        AsyncPipeline,
        AsyncProgress,
        AsyncRun,
        Output,
        Pipeline,
        Preview,
        Progress,
        Recipe,
        Request,
        Run,
        __version__,
        read_recipe,
        to_pil,
    )

__all__ = [
    "AsyncPipeline",
    "AsyncProgress",
    "AsyncRun",
    "BuildError",
    "BundleError",
    "CheckpointError",
    "EngineError",
    "MissingDependencyError",
    "NotFiniteError",
    "OutOfMemoryError",
    "Output",
    "Pipeline",
    "Preview",
    "Progress",
    "Recipe",
    "Request",
    "RequestError",
    "Run",
    "Sd2rtError",
    "UnsafeContentError",
    "__version__",
    "read_recipe",
    "to_pil",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that importing sd2rt loads neither NumPy nor pydantic.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = "sd2rt.engines.errors" if name.endswith("Error") else "sd2rt.runtime"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return __all__
