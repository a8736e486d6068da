"""`sd2rt triton`: a model repository of NVIDIA Triton Inference Server."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from sd2rt.engines.bundle.cache import complete_bundle
from sd2rt.engines.console import print_path
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.cli.output_options import SafetyCheck
from sd2rt.runtime.cli.serve_options import ConfigOptions, MarkOptions, WorkOptions


@dataclass(frozen=True, slots=True)
class RequestLimitOptions(ConfigOptions):
    """Limits of requests."""

    panel: ClassVar[str] = "Limits"

    max_queue: Annotated[
        int | None, typer.Option(help="Unfinished images on a device; others are refused. Default: 64.")
    ] = None
    max_steps: Annotated[int | None, typer.Option(help="Steps of a request. Default: 150.")] = None
    max_side: Annotated[
        int | None,
        typer.Option(help="Pixels of an image's side; twice as many for upscalers. Default: 1024."),
    ] = None
    max_image_pixels: Annotated[int | None, typer.Option(help="Pixels of an image in a request.")] = None


def triton(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundles: folders, or names in the cache. Each becomes a model of its name.",
            show_default=False,
            autocompletion=complete_bundle,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="REPOSITORY",
            help="Folder of models. A model that it has gets a further version, which Triton takes instead.",
        ),
    ],
    work: WorkOptions,
    limits: RequestLimitOptions,
    marks: MarkOptions,
    python: Annotated[
        str | None,
        typer.Option(
            help="Runs the worker, in Triton's container; SD2RT_PYTHON there overrides it. Default: this Python.",
            show_default=False,
        ),
    ] = None,
    single_response: Annotated[
        bool,
        typer.Option(
            "--single-response",
            help="Answer once, with the images, as Triton's HTTP clients need it; otherwise also at each step.",
        ),
    ] = False,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy the bundles too; otherwise the repository names their folders."),
    ] = False,
    safety: SafetyCheck = None,
) -> int:
    """Write bundles into a model repository of NVIDIA Triton Inference Server.

    Triton's own Python needs NumPy alone; sd2rt runs in a worker of the Python that --python names.
    """
    from sd2rt.runtime.server.http.bundles import worker_settings
    from sd2rt.runtime.server.http.config import load_config
    from sd2rt.runtime.triton.repository import write_model

    options: dict[str, Any] = {"bundle": bundles, "safety": safety}
    for group in (work, limits, marks):
        options |= group.given()
    if "keep" in options:
        raise RequestError("--keep is for servers of several bundles: each is a model of its own here")
    # Variables are for `sd2rt serve`: a repository is to be the same wherever it is written.
    settings = worker_settings(load_config(options, environment={}))
    settings = replace(settings, log_level="INFO")
    for name, folder in settings.bundles.items():
        try:
            written = write_model(
                replace(settings, bundles={name: folder}),
                output,
                python=sys.executable if python is None else python,
                streams=not single_response,
                copy=copy,
            )
        except OSError as error:
            raise EngineError(f"{output} cannot be written: {error.strerror or error}") from None
        print_path(written)
    return 0
