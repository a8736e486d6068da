"""Compare ways to decode latents: time, and the change of the picture.

    python -m benchmarks.decoding [--bundle BUNDLE] [--prompts N] [--rounds N] [--output]

Latents are those of images that the bundle draws. Ways decode them in turns; the first round warms up. Ratios are to
ONNX Runtime's time in float32, within a round. Pictures are compared with its pictures, as 8-bit values and, for the
PSNR, before they are rounded. Plain tiles are decoded one by one, without statistics of the whole image, and blended
linearly where they overlap.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.images import difference, eight_bits
from benchmarks.recording import machine, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from sd2rt.runtime import Pipeline
from sd2rt.runtime.images.write import to_unit

Decode = Callable[[NDArray[np.float32]], NDArray[np.float32]]
REFERENCE = "ONNX Runtime, fp32"
OPENINGS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "OpenVINO, fp32": {"backend": "openvino"},
    "OpenVINO, bf16": {"precision": "bf16-decoder"},
}
PLAIN = {"plain tiles of half a side": 2, "plain tiles of a quarter": 4}
"""Sides of an image over those of a tile, without the overlap."""
_OVERLAP = 4
"""Latents at each inner edge that a plain tile takes beyond its own, and over half of which it fades."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoding", description=__doc__.splitlines()[0]
    )
    add_bundle(parser)
    parser.add_argument("--size", type=int, help="side of the images; default: the bundle's native size")
    parser.add_argument("--prompts", type=int, default=16, help="images, of different prompts")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=9)
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    with bundle_or_demo(options.bundle) as path, ExitStack() as stack:
        pipes = {
            name: stack.enter_context(Pipeline.open(path, **opening)) for name, opening in OPENINGS.items()
        }
        latents = draw(pipes[REFERENCE], options)
        whole = pipes[REFERENCE]._networks.vae.decode
        ways: dict[str, Decode] = {name: pipe._networks.vae.decode for name, pipe in pipes.items()}
        ways |= {name: lambda x, n=n: plain_tiles(whole, x, n) for name, n in PLAIN.items()}  # type: ignore[misc]
        cases = measure(ways, latents, options.rounds)
    result = {
        "benchmark": "decoding",
        "bundle": "demo" if options.bundle is None else options.bundle,
        "side": latents[0].shape[-1] * 8,
        "images": len(latents),
        "rounds": options.rounds,
        "cases": cases,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    rows = [
        (
            case["way"],
            f"{case['ms']['median']:.1f}",
            *(f"{case['ratio'][key]:.2f}" for key in ("median", "min", "max")),
            f"{case['within_1']:.4f}",
            case["worst"],
            *(f"{case['psnr_db'][key]:.1f}" if case["psnr_db"] else "equal" for key in ("median", "min")),
        )
        for case in cases
    ]
    header = ("decoder", "ms", "/ fp32", "min", "max", "within 1", "worst", "PSNR, dB", "lowest")
    report.finish(result, header, rows, options.output)


def draw(pipe: Pipeline, options: argparse.Namespace) -> list[NDArray[np.float32]]:
    """Latents [C, h, w] of images of different prompts."""
    words = itertools.product(("small", "large"), ("red", "blue", "green", "yellow"), ("circle", "square"))
    sides = {} if options.size is None else {"width": options.size, "height": options.size}
    prompts = [f"a {' '.join(each)} on a white background" for each in words][: options.prompts]
    return [
        pipe(prompt, seed=seed, num_inference_steps=options.steps, output_type="latent", **sides).images[0]
        for seed, prompt in enumerate(prompts)
    ]


def plain_tiles(decode: Decode, latents: NDArray[np.float32], parts: int) -> NDArray[np.float32]:
    """Decode ``parts`` by ``parts`` tiles of latents [C, h, w], and blend them to an image [3, 8h, 8w]."""
    _, h, w = latents.shape
    image = np.zeros((3, 8 * h, 8 * w), np.float32)
    weights = np.zeros((8 * h, 8 * w), np.float32)
    for i, j in itertools.product(range(parts), range(parts)):
        rows, y = _reach(h, parts, i)
        columns, x = _reach(w, parts, j)
        weight = np.outer(y, x)
        area = (slice(8 * rows.start, 8 * rows.stop), slice(8 * columns.start, 8 * columns.stop))
        image[:, *area] += decode(np.ascontiguousarray(latents[:, rows, columns])) * weight
        weights[area] += weight
    return np.divide(image, weights, dtype=np.float32)


def _reach(side: int, parts: int, place: int) -> tuple[slice, NDArray[np.float32]]:
    """Latents of a tile along one side, and the weights of its pixels."""
    first, last = side * place // parts, side * (place + 1) // parts
    reach = slice(max(first - _OVERLAP, 0), min(last + _OVERLAP, side))
    pixels = np.arange(8 * reach.start, 8 * reach.stop, dtype=np.float32) + 0.5
    fade = 8.0 * _OVERLAP / 2
    up = np.ones_like(pixels) if first == 0 else (pixels - 8 * first) / (2 * fade) + 0.5
    down = np.ones_like(pixels) if last == side else (8 * last - pixels) / (2 * fade) + 0.5
    return reach, np.clip(np.minimum(up, down), 1e-6, 1).astype(np.float32)


def measure(ways: dict[str, Decode], latents: list[NDArray[np.float32]], rounds: int) -> list[dict[str, Any]]:
    """Decode all latents each way, in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    pictures: dict[str, list[NDArray[np.float32]]] = {}
    names = list(ways)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            images = [ways[name](each) for each in latents]
            if turn:
                times[name].append((time.perf_counter() - start) * 1000 / len(latents))
            else:
                pictures[name] = [to_unit(image) for image in images]
    cases = []
    for name in ways:
        pairs = list(zip(pictures[name], pictures[REFERENCE], strict=True))
        apart = [abs(eight_bits(a).astype(int) - eight_bits(b)) for a, b in pairs]
        psnr = [each for a, b in pairs if (each := difference(a, b)["psnr_db"]) is not None]
        cases.append(
            {
                "way": name,
                "ms": report.summary(times[name]),
                "ratio": report.summary(a / b for a, b in zip(times[name], times[REFERENCE], strict=True)),
                "within_1": float(np.mean([np.mean(each <= 1) for each in apart])),
                "worst": int(max(each.max() for each in apart)),
                "psnr_db": report.summary(psnr) if psnr else None,
            }
        )
    return cases


if __name__ == "__main__":
    main()
