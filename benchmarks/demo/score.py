"""What the demo draws: its checkpoints' pictures of fixed sets, read by code and counted, by sd2rt and by diffusers.

    python -m benchmarks.demo.score --bundles DIR --output FILE.json
    python -m benchmarks.demo.score --engines sd2rt diffusers --checkpoints DIR --sets text --kinds base --limit 40

Both engines get the same seeds, whose noise is the same. Ctrl-C ends it and writes what is done so far.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.demo import sets
from benchmarks.demo.family import CHECKPOINTS
from benchmarks.demo.painter import Painter, Settings
from benchmarks.demo.sets import SETS, Judged
from benchmarks.demo.tally import Tally
from benchmarks.recording import machine, report

NAME = "demo-draws"
ENGINES = ("sd2rt", "diffusers")
TEXT_KINDS = ("base", "v")


@dataclass(frozen=True, slots=True)
class Job:
    """A set, painted by one engine with the checkpoint of one kind."""

    engine: str
    kind: str
    set: str


def main() -> None:
    options = _parser().parse_args()
    jobs = list(_jobs(options))
    scores: list[dict[str, Any]] = []
    result = {
        "benchmark": NAME,
        "steps": options.steps,
        "guidance_scale": options.guidance,
        "upscaler_guidance_scale": options.upscaler_guidance,
        "sampler": options.sampler,
        "precision": options.precision,
        "device": options.device,
        "threads": options.threads,
        "batch": options.batch,
        "limit": options.limit,
        "scores": scores,
        "machine": machine.facts(),
    }
    if options.output is not None:
        # A later result must not come under another day's name than an earlier part of it.
        options.output = str(report.path_of(result, options.output))
    with report.interruptible(result, "benchmarks.demo.score"):
        for job in jobs:
            _score(job, options, scores)
            if options.output is not None:
                report.write(result, options.output)
    rows = [
        (
            f"{score['engine']}, {score['kind']}, {score['set']}",
            what,
            f"{count['right']} of {count['of']}",
            f"{count['share']:.1%}",
            f"{count['low']:.1%} to {count['high']:.1%}",
        )
        for score in scores
        for what, count in score["counts"].items()
    ]
    rows += [
        (f"{score['engine']}, {score['kind']}, {score['set']}", what, f"{mean:.3f}", "", "")
        for score in scores
        for what, mean in score["means"].items()
    ]
    report.finish(result, ("", "", "right", "share", "95 %"), rows, options.output)
    if not result["complete"]:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.score", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["sd2rt"])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=TEXT_KINDS,
        default=list(TEXT_KINDS),
        help="of the checkpoints for the sets text and negative; the other sets have one each",
    )
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="where bundles are, if not found by name")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="where diffusers' folders are")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N cases of each set alone")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument(
        "--upscaler-guidance",
        type=float,
        default=1.0,
        help="of the upscaler, whose pictures are compared with true ones: 1, none, if left out",
    )
    parser.add_argument("--strength", type=float, default=1.0, help="of inpainting and depth")
    parser.add_argument("--noise-level", type=int, default=20, help="of the upscaler")
    parser.add_argument("--sampler", help="the checkpoint's own if left out")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="one per core if left out")
    parser.add_argument("--batch", type=int, default=4, help="pictures at a time")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write every picture there")
    report.add_output(parser)
    return parser


def _jobs(options: argparse.Namespace) -> Iterator[Job]:
    if "diffusers" in options.engines and options.checkpoints is None:
        sys.exit(
            "benchmarks.demo.score: diffusers needs --checkpoints, the folder of demo/, demo-v/ and others"
        )
    for engine in options.engines:
        for kind, (_, names) in CHECKPOINTS.items():
            if kind in TEXT_KINDS and kind not in options.kinds:
                continue
            yield from (Job(engine, kind, name) for name in names if name in options.sets)


def _score(job: Job, options: argparse.Namespace, scores: list[dict[str, Any]]) -> None:
    """Add a set's score: of what was judged, where it is interrupted."""
    settings, tally = _settings(job, options), Tally()
    opening = time.perf_counter()
    with _painter(job, options) as painter:
        start = time.perf_counter()
        done = 0

        def seen(index: int, count: int, pictures: Judged) -> None:
            nonlocal done
            done = index + 1
            left = (time.perf_counter() - start) / done * (count - done)
            text = f"{job.engine}, {job.kind}, {job.set}: {done} of {count}, {left:.0f} s left"
            print(f"\r{text:<70}", end="\n" if done == count else "", file=sys.stderr, flush=True)
            if options.pictures is not None:
                _keep(options.pictures, f"{job.engine}-{job.kind}-{job.set}-{index:03}", pictures)

        try:
            sets.run(job.set, painter, settings, tally, batch=options.batch, limit=options.limit, seen=seen)
        finally:
            if done:
                scores.append(
                    {
                        **asdict(job),
                        **asdict(settings),
                        "cases": done,
                        **tally.result(),
                        "seconds": round(time.perf_counter() - start, 2),
                        "open_seconds": round(start - opening, 2),
                    }
                )


def _settings(job: Job, options: argparse.Namespace) -> Settings:
    guidance = options.upscaler_guidance if job.set == "upscaler" else options.guidance
    return Settings(
        options.steps,
        guidance,
        options.sampler,
        strength=options.strength if job.set in ("inpainting", "depth") else None,
        noise_level=options.noise_level if job.set == "upscaler" else None,
    )


def _painter(job: Job, options: argparse.Namespace) -> Painter:
    name, _ = CHECKPOINTS[job.kind]
    shared = {"device": options.device, "threads": options.threads, "precision": options.precision}
    # Each is imported where it is asked for: scores of sd2rt alone need no torch.
    if job.engine == "diffusers":
        from benchmarks.demo.diffusers_painter import DiffusersPainter

        return DiffusersPainter(str(options.checkpoints / name), **shared)
    from benchmarks.demo.sd2rt_painter import Sd2rtPainter

    bundle = name if options.bundles is None else str(options.bundles / name)
    return Sd2rtPainter(bundle, batch=options.batch, **shared)


def _keep(folder: Path, name: str, pictures: Judged) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{name}-{number}.png")


if __name__ == "__main__":
    main()
