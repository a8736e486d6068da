"""`sd2rt run`: prompts in, PNG files out."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError
from sd2rt.engines.manifest import MANIFEST
from sd2rt.engines.store import find_bundle, named_bundle

if TYPE_CHECKING:
    from sd2rt.runtime.pipeline import Pipeline
    from sd2rt.runtime.request import Request
    from sd2rt.runtime.run import Progress

DEMO = "demo"


def run(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] PROMPT",
            help="A bundle (a folder, or a name in the cache; the demo if left out) and a prompt; "
            "- reads prompts from standard input, one a line.",
            show_default=False,
        ),
    ],
    negative: Annotated[str, typer.Option(help="What the images should not show.")] = "",
    image: Annotated[
        str | None, typer.Option(help="A PNG, JPEG or WebP to start from; - reads standard input.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="inpainting: of the image's size; white, or transparent, is made anew."),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(help="depth: a gray image, brighter is nearer, instead of what is inferred."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How far to leave the image, above 0 to 1; the bundle's own if left out."),
    ] = None,
    noise_level: Annotated[
        int | None,
        typer.Option(help="upscaling: noise added to the image, for the upscaler to imagine upon."),
    ] = None,
    paste: Annotated[
        bool, typer.Option("--paste", help="inpainting: put the image's own pixels back outside the mask.")
    ] = False,
    paste_blur: Annotated[
        float, typer.Option(help="Pixels over which pasting fades, inside the mask.")
    ] = 4.0,
    save_depth: Annotated[
        Path | None, typer.Option(help="depth: write the depth map here, as 16-bit gray PNG.")
    ] = None,
    upscale: Annotated[
        str | None,
        typer.Option(metavar="BUNDLE", help="An upscaler's bundle: make results four times as large."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps; the bundle's own if left out.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale, 1 or less turns it off; the bundle's own if left out."),
    ] = None,
    rescale: Annotated[float, typer.Option(help="Guidance rescale, 0 to 1.")] = 0.0,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, pndm, euler or dpmpp-2m; the checkpoint's own if left out.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Timestep spacing: leading, trailing or linspace.")
    ] = None,
    eta: Annotated[float, typer.Option(help="ddim: share of fresh noise, 0 to 1.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; image i uses seed + i.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, multiples of 64.")] = None,
    count: Annotated[int, typer.Option(help="Images per prompt.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file, or a folder for files named by seed.")
    ] = Path("."),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; one per core if left out.")] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Longest side of latents that are encoded, decoded or upscaled at once."),
    ] = None,
    max_image_pixels: Annotated[
        int | None, typer.Option(help="Refuse images of more pixels, before decoding them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line for each image.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Make images from a bundle."""
    bundle, prompts = _words(words)
    if prompts is None and image == "-":
        raise RequestError(
            "both the prompts and the image are to be read from standard input: give one a name"
        )
    options: dict[str, Any] = {
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "guidance_rescale": rescale,
        "sampler": sampler,
        "schedule": schedule,
        "eta": eta,
        "image": image,
        "mask_image": mask,
        "depth_map": depth,
        "strength": strength,
        "noise_level": noise_level if upscale is None else None,
        "paste": paste,
        "paste_blur": paste_blur,
        "num_images_per_prompt": 1,
    }
    if max_image_pixels is not None:
        options["max_image_pixels"] = max_image_pixels
    if size is not None:
        options["width"], options["height"] = _size(size)
    from sd2rt.runtime.call import CallOptions, divide

    # Checked before anything is opened or built: a slip of the keyboard should not cost a minute.
    each = [prompt for prompt in prompts or _prompts() for _ in range(_count(count))]
    first = secrets.randbits(32) if seed is None else seed
    requests = divide(each, cast(CallOptions, {**options, "seed": first}))
    _check_output(output, len(requests))
    if save_depth is not None:
        _check_output(save_depth, 1)
    from sd2rt.runtime.pipeline import TILE, Pipeline

    opening: dict[str, Any] = {"device": device, "threads": threads, "tile": TILE if tile is None else tile}
    path = _bundle(bundle, quiet or as_json)
    with (
        _shown_warnings(quiet),
        Pipeline.open(path, **opening) as pipeline,
        nullcontext() if upscale is None else Pipeline.open(upscale, **opening) as upscaler,
        _progress_bar(hidden=quiet or as_json, images=len(requests)) as advance,
    ):
        requests = [pipeline.resolve(request) for request in requests]
        if upscaler is not None:
            upscaler.refuse_unless("upscaling")
        if save_depth is not None:
            _save_depth(pipeline, requests[0], save_depth)
        failures: list[EngineError] = []
        # A batch at a time, each saved before the next is begun: an interruption loses no finished image.
        for start in range(0, len(requests), pipeline.max_batch):
            batch, began = requests[start : start + pipeline.max_batch], time.perf_counter()
            made = _make(pipeline, batch, "", advance)
            if upscaler is not None:
                made = _upscaled(upscaler, made, noise_level, advance)
            seconds = time.perf_counter() - began
            for outcome in made:
                if isinstance(outcome, EngineError):
                    failures.append(outcome)
                    continue
                picture, facts = outcome
                saved = _save(picture, facts, output)
                if as_json:
                    timing = {"batch": len(batch), "batch_seconds": round(seconds, 3)}
                    print(json.dumps({"path": str(saved), **facts, **timing}), flush=True)
                elif not quiet:
                    print(saved, flush=True)
    if failures:
        others = f"{len(failures)} of {len(requests)} images failed, the first: " if len(requests) > 1 else ""
        raise EngineError(f"{others}{failures[0]}")


Made = tuple[Any, dict[str, Any]]
"""An image, and the facts that go into its file."""


def _make(
    pipeline: Pipeline, requests: list[Request], stage: str, advance: Advance
) -> list[Made | EngineError]:
    with pipeline.stream_requests(requests) as running:
        for progress in running:
            advance(stage, progress, len(requests))
        outcomes = running.outcomes()
    return [
        outcome if isinstance(outcome, EngineError) else (outcome.images[0], _facts(pipeline, request))
        for request, outcome in zip(running.requests, outcomes, strict=True)
    ]


def _upscaled(
    upscaler: Pipeline, made: list[Made | EngineError], noise_level: int | None, advance: Advance
) -> list[Made | EngineError]:
    """The same images four times as large, one at a time: a large image is many tiles, a batch by itself."""
    from sd2rt.runtime.request import make_request

    larger: list[Made | EngineError] = []
    for outcome in made:
        if isinstance(outcome, EngineError):
            larger.append(outcome)
            continue
        image, facts = outcome
        own = {name: facts[name] for name in ("prompt", "negative_prompt", "seed")}
        request = make_request(**own, image=image, noise_level=noise_level)
        (result,) = _make(upscaler, [request], "upscaling", advance)
        if isinstance(result, EngineError):
            larger.append(result)
            continue
        image, about = result
        sides = {"width": image.width, "height": image.height}
        larger.append((image, {**facts, **sides, "upscaled": about}))
    return larger


def _save_depth(pipeline: Pipeline, request: Request, path: Path) -> None:
    from sd2rt.runtime.depth_map import save_depth

    pipeline.refuse_unless("depth-to-image")
    depth = pipeline.depth(request.image) if request.depth_map is None else request.depth_map
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_depth(depth, path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error


def _count(count: int) -> int:
    if count < 1:
        raise RequestError(f"--count is {count}: give at least 1")
    return count


def _words(words: list[str]) -> tuple[str | None, list[str] | None]:
    """The bundle, if one is named, and the prompts; None where they are to be read from standard input."""
    if len(words) > 2:
        raise RequestError(f"{len(words)} arguments, expected [BUNDLE] PROMPT: put the prompt in quotes")
    bundle, prompt = (None, words[0]) if len(words) == 1 else (words[0], words[1])
    if bundle is None and os.path.isfile(find_bundle(prompt) / MANIFEST):
        raise RequestError(f"{prompt!r} is a bundle, and there is no prompt: give one after it")
    return bundle, None if prompt == "-" else [prompt]


def _prompts() -> list[str]:
    try:
        prompts = [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not {error.encoding} text ({error.reason})") from None
    prompts = [line for line in prompts if line.strip()]
    if not prompts:
        raise RequestError("standard input holds no prompt: write one a line")
    return prompts


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise RequestError(f"--size {text!r} is not WxH, such as 512x512")
    return int(width), int(height)


def _bundle(name: str | None, quiet: bool) -> str | Path:
    """The bundle that was named, or the demo, which is built where it is missing and can be."""
    if name is not None:
        return name
    demo = named_bundle(DEMO)
    if not (demo / MANIFEST).is_file():
        if find_spec("torch") is None:
            raise MissingDependencyError(
                "no bundle was named and the demo is not built: pip install 'sd2rt[export]' and run "
                "'sd2rt build demo', or name a bundle"
            )
        if not quiet:
            print("sd2rt: building the demo bundle, once", file=sys.stderr)
        code = _build_demo()
        if code != 0:
            # What was wrong stands on standard error already, in the words of the build.
            raise typer.Exit(code)
    return demo


def _build_demo() -> int:
    """Build in a process of its own, so that this one stays free of torch, and return its exit code."""
    child = subprocess.Popen(
        # Without -P the working directory would come before what is installed.
        [sys.executable, "-P", "-m", "sd2rt.runtime", "build", DEMO],
        stdout=subprocess.DEVNULL,
    )
    try:
        return child.wait()
    except KeyboardInterrupt:
        try:
            # A terminal tells both of them; the child has things to put in order.
            child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            child.wait()
        raise


def _check_output(output: Path, total: int) -> None:
    if output.suffix.lower() == ".png" and not output.is_dir():
        if total > 1:
            raise RequestError(f"--output {output} is one file for {total} images: give a folder")
        folder = output.parent
    else:
        if output.suffix and not output.is_dir():
            raise RequestError(f"--output {output} is neither a .png file nor a folder: images are PNG")
        folder = output
    # Folders that are missing are made later, inside the first that is there.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise RequestError(f"--output {output}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"--output {output}: {existing} cannot be written to: choose another folder")


Advance = Callable[[str, "Progress", int], None]


@contextmanager
def _progress_bar(hidden: bool, images: int) -> Iterator[Advance]:
    """What to call after each step, with the stage, its progress and the number of images in its batch; draws a
    bar for each stage on a terminal."""
    if hidden or not sys.stderr.isatty():
        yield lambda stage, progress, batch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    name, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]:.2f} it/s")
    columns = (name, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    # What is printed must reach standard output, which may be a file, while the bar is on the terminal.
    with Bar(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        tasks: dict[str, Any] = {}
        finished: dict[str, int] = {}
        spent: dict[str, float] = {}
        last = time.perf_counter()

        def advance(stage: str, progress: Progress, batch: int) -> None:
            nonlocal last
            if stage not in tasks:
                tasks[stage], finished[stage], spent[stage] = (
                    bar.add_task(stage, total=None, rate=0.0),
                    0,
                    0.0,
                )
            now = time.perf_counter()
            spent[stage], last = spent[stage] + now - last, now
            done = finished[stage] + progress.done
            if progress.done == progress.total:
                finished[stage] = done
            each = progress.total // batch
            bar.update(tasks[stage], completed=done, total=each * images, rate=done / spent[stage])

        yield advance


def _facts(pipeline: Pipeline, request: Request) -> dict[str, Any]:
    width, height = pipeline.size_of(request)
    optional = {"strength": request.strength, "noise_level": request.noise_level}
    return {
        "task": pipeline.task_of(request),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "steps": request.num_inference_steps,
        "sampler": pipeline.sampler_of(request).name,
        "schedule": pipeline.sampler_of(request).spacing,
        "eta": request.eta,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "seed": request.seed,
        "width": width,
        "height": height,
        "bundle": pipeline.manifest.name,
        "identity": pipeline.manifest.identity,
        **{name: value for name, value in optional.items() if value is not None},
    }


_A1111_SAMPLERS = {"ddim": "DDIM", "pndm": "PLMS", "euler": "Euler", "dpmpp-2m": "DPM++ 2M"}


def _parameters(facts: dict[str, Any], version: str) -> str:
    """The text that AUTOMATIC1111's web interface writes into a PNG and reads back from it."""
    lines = [facts["prompt"] or ""]
    if facts["negative_prompt"]:
        lines.append(f"Negative prompt: {facts['negative_prompt']}")
    sampler = _A1111_SAMPLERS[facts["sampler"]]
    extra = [f"Spacing: {facts['schedule']}, "]
    extra += [f"Eta: {facts['eta']:g}, "] if facts["eta"] else []
    extra += [f"Denoising strength: {facts['strength']:g}, "] if "strength" in facts else []
    extra += [f"CFG rescale: {facts['guidance_rescale']:g}, "] if facts["guidance_rescale"] else []
    lines.append(
        f"Steps: {facts['steps']}, Sampler: {sampler}, CFG scale: {facts['guidance_scale']:g}, "
        f"Seed: {facts['seed']}, Size: {facts['width']}x{facts['height']}, "
        f"{''.join(extra)}Model hash: {facts['identity'][:10]}, Model: {facts['bundle']}, Version: sd2rt {version}"
    )
    return "\n".join(lines)


def _save(image: Any, facts: dict[str, Any], output: Path) -> Path:
    """Write an image into ``output``, a file or a folder, and return where it is."""
    from sd2rt.runtime import __version__
    from sd2rt.runtime.image import save_png

    text = {"parameters": _parameters(facts, __version__), "sd2rt": json.dumps(facts)}
    named = output.suffix.lower() == ".png" and not output.is_dir()
    path, number = output if named else output / f"{facts['seed']}.png", 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                save_png(image, path, text, replace=named)
                return path
            except FileExistsError:
                # An earlier image is never overwritten unless it was named.
                path, number = output / f"{facts['seed']}-{number}.png", number + 1
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def _shown_warnings(quiet: bool) -> Iterator[None]:
    """Warnings as a line each on standard error, or not at all."""

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        print(f"sd2rt: warning: {' '.join(str(message).splitlines())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always")
        warnings.showwarning = show
        yield
