"""Inference: turn requests into images with a bundle's engines. Does not depend on PyTorch.

from sd2rt.runtime import Pipeline

with Pipeline.open("bundle") as pipe:
    image = pipe("a photograph of an astronaut riding a horse", seed=1).images[0]
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd2rt.runtime.images.write import to_pil
    from sd2rt.runtime.metadata.recipe import Recipe, read_recipe
    from sd2rt.runtime.networks.preview import Preview
    from sd2rt.runtime.pipeline.async_pipeline import AsyncPipeline
    from sd2rt.runtime.pipeline.async_run import AsyncProgress, AsyncRun
    from sd2rt.runtime.pipeline.output import Output
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.pipeline.progress import Progress
    from sd2rt.runtime.pipeline.run import Run
    from sd2rt.runtime.request.request import Request

__all__ = [
    "AsyncPipeline",
    "AsyncProgress",
    "AsyncRun",
    "Output",
    "Pipeline",
    "Preview",
    "Progress",
    "Recipe",
    "Request",
    "Run",
    "__version__",
    "read_recipe",
    "to_pil",
]

_MODULES = {
    "AsyncPipeline": "pipeline.async_pipeline",
    "AsyncProgress": "pipeline.async_run",
    "AsyncRun": "pipeline.async_run",
    "Output": "pipeline.output",
    "Pipeline": "pipeline.pipeline",
    "Preview": "networks.preview",
    "Progress": "pipeline.progress",
    "Recipe": "metadata.recipe",
    "Request": "request.request",
    "Run": "pipeline.run",
    "read_recipe": "metadata.recipe",
    "to_pil": "images.write",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that --help does not load NumPy.
    if name == "__version__":
        return version("sd2rt")
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"sd2rt.runtime.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
