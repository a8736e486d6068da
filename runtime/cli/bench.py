"""`sd2rt bench`: how fast a bundle is here, in how much memory, and where its time goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.cli import options, parsing
from sd2rt.runtime.cli.console import bench_bar, shown_warnings
from sd2rt.runtime.cli.demo_bundle import bundle_or_demo


def bench(
    bundle: Annotated[
        str | None,
        typer.Argument(
            help="A bundle: a folder, or a name in the cache; the demo if left out.", show_default=False
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Images that are made at once.")] = "1",
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH,...", help="Pixels of the images; the bundle's own if left out."),
    ] = None,
    steps: options.Steps = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale, 1 or less turns it off; the bundle's own if left out."),
    ] = None,
    sampler: options.Sampler = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the images show; a photograph, if left out.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image, and of pictures to start from.")] = 1,
    repetitions: Annotated[int, typer.Option(min=1, help="How often each case is measured.")] = 5,
    warmup: Annotated[
        int, typer.Option(min=0, help="Images made before, of three denoiser calls each, which do not count.")
    ] = 1,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    first_image: Annotated[
        bool,
        typer.Option(
            "--first-image/--no-first-image", help="Measure `sd2rt run` from process start to its image, too."
        ),
    ] = True,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier result: every figure beside it, and their ratio."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a Chrome trace of one image, for Perfetto or chrome://tracing."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result, as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the line of JSON alone.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no warnings.")] = False,
) -> None:
    """Measure how fast a bundle's images are made here, and in how much memory."""
    batches, sizes = _batches(batch), _sizes(size)
    if prompt == "-":
        raise RequestError("--prompt - is what 'sd2rt run' reads standard input for: give a text")
    from sd2rt.runtime.bench.comparison import compare as compared
    from sd2rt.runtime.bench.comparison import read_result
    from sd2rt.runtime.bench.whole_file import write_whole

    # A slip of the keyboard should not cost the minutes that measuring takes.
    earlier = None if compare is None else read_result(compare)
    _check_target("--output", output)
    _check_target("--profile", profile)
    from sd2rt.runtime.bench.runner import Bench, Settings
    from sd2rt.runtime.bench.workload import PROMPT

    settings = Settings(
        bundle=str(bundle_or_demo(bundle, quiet or as_json)),
        prompt=PROMPT if prompt is None else prompt,
        seed=seed,
        request={"num_inference_steps": steps, "guidance_scale": guidance, "sampler": sampler},
        sizes=sizes,
        batches=batches,
        repetitions=repetitions,
        warmup=warmup,
        device=device,
        backend=backend,
        precision=precision,
        threads=threads,
        first_image=first_image,
        profile=profile,
    )
    with shown_warnings(quiet), bench_bar(hidden=quiet or as_json) as tell:
        result = Bench(settings).measure(tell)
    if earlier is not None:
        result["comparison"] = compared(result, earlier)
    if output is not None:
        write_whole(output, json.dumps(result, indent=1) + "\n")
    if not as_json:
        from sd2rt.runtime.bench.tables import show, show_comparison

        show(result)
        if earlier is not None:
            show_comparison(result["comparison"])
        print()
    print(json.dumps(result))


def _batches(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and len(word) < 6 and int(word) for word in words):
        raise RequestError(
            f"--batch {text!r} is not numbers of at least 1 with ',' between them, such as 1,2,4"
        )
    return tuple(dict.fromkeys(map(int, words)))


def _sizes(text: str | None) -> tuple[tuple[int, int], ...]:
    return () if text is None else tuple(dict.fromkeys(parsing.size(word) for word in text.split(",")))


def _check_target(option: str, path: Path | None) -> None:
    """See that a file can be written, before anything is measured.

    Raises:
        RequestError: it cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise RequestError(f"{option} {path} is a folder: give a file")
    if not path.parent.is_dir():
        raise RequestError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RequestError(f"{option} {path}: {path.parent} cannot be written to: choose another folder")
