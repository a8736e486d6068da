"""`sd2rt bench`: measure a bundle's speed and memory on this machine, and where its time goes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sd2rt.engines.bundle.cache import complete_bundle
from sd2rt.engines.errors import RequestError
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.runtime.cli.bench_server import ServerOptions, measure_server
from sd2rt.runtime.cli.console import bench_bar, shown_warnings
from sd2rt.runtime.cli.demo_bundle import bundle_or_demo
from sd2rt.runtime.cli.device_options import DeviceOptions
from sd2rt.runtime.cli.options import StepOptions
from sd2rt.runtime.rows import option_text

if TYPE_CHECKING:
    from sd2rt.runtime.bench.serving.sweep import SweepSettings


@dataclass(frozen=True, slots=True)
class MeasurementOptions(OptionGroup):
    """Cases to measure, and how often."""

    panel: ClassVar[str] = "Measurement"

    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes.")] = "1"
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH,...", help="Sizes in pixels; default: the bundle's first native size."),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(help="Prompt of the images; default: a photograph.", show_default=False),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the first image and of random input images.")] = 1
    repetitions: Annotated[int, typer.Option(min=1, help="Measurements of each case.")] = 5
    warmup: Annotated[
        int, typer.Option(min=0, help="Unmeasured images before them, of three denoiser calls each.")
    ] = 1
    first_image: Annotated[
        bool,
        typer.Option(
            "--first-image/--no-first-image",
            help="Also measure `sd2rt run` from process start to the saved image.",
        ),
    ] = True


@dataclass(frozen=True, slots=True)
class ResultOptions(OptionGroup):
    """Files to write, and lines to print."""

    panel: ClassVar[str] = "Output"

    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier result to compare with, figure by figure."),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a Chrome trace of one image, for Perfetto or chrome://tracing."
        ),
    ] = None
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result as JSON.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print only the line of JSON.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no warnings.")] = False


def bench(
    context: typer.Context,
    measurement: MeasurementOptions,
    sampling: StepOptions,
    device: DeviceOptions,
    server: ServerOptions,
    result_options: ResultOptions,
    bundle: Annotated[
        str | None,
        typer.Argument(
            help="A bundle: a folder, or a name in the cache; default: the demo.",
            show_default=False,
            autocompletion=complete_bundle,
        ),
    ] = None,
) -> None:
    """Measure a bundle's speed and memory on this machine, or a running server under load (--serve)."""
    if measurement.prompt == "-":
        raise RequestError("--prompt - is for 'sd2rt run', which reads standard input: give a text")
    from sd2rt.runtime.bench.workload import PROMPT

    prompt = PROMPT if measurement.prompt is None else measurement.prompt
    if (load := server.settings(context, prompt, measurement.seed)) is not None:
        _measure_server(load, server.plot, result_options)
        return
    batches, sizes, request = _batches(measurement.batch), _sizes(measurement.size), sampling.fields()
    from sd2rt.runtime.bench.comparison import compare as compared
    from sd2rt.runtime.bench.comparison import read_result
    from sd2rt.runtime.bench.whole_file import write_whole

    # A typing mistake should not cost the minutes that measuring takes.
    earlier = None if result_options.compare is None else read_result(result_options.compare)
    _check_target("--output", result_options.output)
    _check_target("--profile", result_options.profile)
    from sd2rt.runtime.bench.runner import Bench, Settings

    hidden = result_options.quiet or result_options.as_json
    path = bundle_or_demo(bundle, hidden)
    settings = Settings(
        bundle=str(path),
        prompt=prompt,
        seed=measurement.seed,
        request=request,
        sizes=sizes,
        batches=batches,
        repetitions=measurement.repetitions,
        warmup=measurement.warmup,
        **device.opening(path),
        first_image=measurement.first_image,
        profile=result_options.profile,
    )
    with shown_warnings(result_options.quiet), bench_bar(hidden=hidden) as tell:
        result = Bench(settings).measure(tell)
    if earlier is not None:
        result["comparison"] = compared(result, earlier)
    if result_options.output is not None:
        write_whole(result_options.output, json.dumps(result, indent=1) + "\n")
    if not result_options.as_json:
        from sd2rt.runtime.bench.tables import show, show_comparison

        show(result)
        if earlier is not None:
            show_comparison(result["comparison"])
        print()
    print(json.dumps(result))


def _measure_server(load: SweepSettings, plot: Path | None, options: ResultOptions) -> None:
    from sd2rt.runtime.bench.whole_file import write_whole

    _check_target("--output", options.output)
    _check_target("--plot", plot)
    result, show = measure_server(load, plot, hidden=options.quiet or options.as_json)
    if options.output is not None:
        write_whole(options.output, json.dumps(result, indent=1) + "\n")
    if not options.as_json:
        show()
        print()
    print(json.dumps(result))


def _batches(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and len(word) < 6 and int(word) for word in words):
        raise RequestError(f"--batch {text!r} is not a list of numbers of at least 1, such as 1,2,4")
    return tuple(dict.fromkeys(map(int, words)))


def _sizes(text: str | None) -> tuple[tuple[int, int], ...]:
    return () if text is None else tuple(dict.fromkeys(option_text.size(word) for word in text.split(",")))


def _check_target(option: str, path: Path | None) -> None:
    """Check that a file can be written, before anything is measured.

    Raises:
        RequestError: it cannot.
    """
    if path is None:
        return
    if os.path.isdir(path):
        raise RequestError(f"{option} {path} is a folder: give a file")
    if not os.path.isdir(path.parent):
        raise RequestError(f"{option} {path}: folder {path.parent} does not exist: make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RequestError(f"{option} {path}: {path.parent} cannot be written to: choose another folder")
