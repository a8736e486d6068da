"""Full-size Stable Diffusion 2 on a CPU: build both checkpoint formats, then compare images with diffusers.

    python -m benchmarks.full_size [--steps 4] [--pairs 3] [--output]
    python -m benchmarks.full_size --small        a tiny network, in two minutes

Random weights cost the same time and memory as trained ones. Every stage runs in a separate process, through the
command line where one exists. Files are deleted as soon as no later stage needs them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers.images import eight_bits
from benchmarks.peers.peer_results import TIMES
from benchmarks.recording import machine, process, report
from benchmarks.recording.process import Measured, sd2rt
from benchmarks.recording.work_folder import add_workdir, work_folder

BUILD_SECONDS_BOUND = 300.0
BUILD_BYTES_BOUND = 12_000_000_000
PIXEL_BOUND = 2
PSNR_BOUND = 55.0
FULL_BYTES = 20_000_000_000
SMALL_BYTES = 500_000_000
SEED = 1
SIDES = ("sd2rt", "diffusers")
DIFFERENCE = ("max_pixel", "pixels_that_differ", "max_before_rounding", "psnr_db", "pixel_std")
PROMPT = "a photograph of an astronaut riding a horse"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--configs", default="stable-diffusion-2-base", help="a folder of export/configs")
    parser.add_argument("--variant", default="2.0-base", help="variant name of these configurations")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3, help="images per side, alternating")
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--skip-ldm", action="store_true", help="skip the single-file checkpoint")
    add_workdir(parser)
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint and the bundle")
    report.add_output(parser)
    options = parser.parse_args()
    needed = SMALL_BYTES if options.small else FULL_BYTES
    with work_folder("full-size", options.workdir, needed, keep=options.keep) as folder:
        result = _Stages(options, folder).run()
    report.finish(result, ("", "value", "bound", "holds"), _rows(result), options.output)


class _Stages:
    """Run the stages in order and record the measurements of each."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._env = process.environment(folder)
        self._stages: dict[str, Measured] = {}
        self._loads: dict[str, list[float]] = {}
        self._configs = "small" if options.small else options.configs

    def run(self) -> dict[str, Any]:
        facts = machine.facts()
        options = self._options
        checkpoint, bundle = self._folder / "checkpoint", self._folder / "bundle"
        self._module("write diffusers", "benchmarks.checkpoint", checkpoint, "--configs", self._configs)
        sizes = {"checkpoint": _size(checkpoint)}
        ldm = None if options.skip_ldm else self._ldm(checkpoint, sizes)
        self._sd2rt("build diffusers", "build", checkpoint, "-o", bundle)
        sizes["bundle"] = _size(bundle)
        self._sd2rt("verify", "verify", bundle)
        manifest = json.loads((bundle / "bundle.json").read_text())
        png = self._folder / "image.png"
        self._sd2rt(
            "run", "run", bundle, PROMPT, "--steps", options.steps,
            "--seed", SEED, "--quiet", "-o", png,
        )  # fmt: skip
        both = self._peers("together", bundle, checkpoint, *SIDES, pairs=options.pairs)
        equal = _same_picture(png, self._folder / "sd2rt.npy")
        alone = {side: self._peers(f"{side} alone", bundle, checkpoint, side) for side in SIDES}
        return {
            "benchmark": "full-size-cpu-small" if options.small else "full-size-cpu",
            "configs": self._configs,
            "parameters": {name: part["parameters"] for name, part in manifest["parts"].items()},
            "size_px": manifest["native_sizes"][0],
            "sampler": manifest["sampler"]["name"],
            "steps": options.steps,
            "bytes": sizes,
            "stages": {name: self._measured(name) for name in self._stages},
            "build": self._builds(),
            "equal_weights": None if ldm is None else ldm == _data_hashes(manifest),
            "comparison": _comparison(both, alone, equal),
            "machine": facts,
            "load_average_after": machine.load_average(),
        }

    def _ldm(self, configs: Path, sizes: dict[str, int]) -> dict[str, str]:
        """Write, build and verify the single-file checkpoint; keep only the hashes of its weights."""
        file, bundle = self._folder / "checkpoint.safetensors", self._folder / "bundle-ldm"
        self._module(
            "write ldm", "benchmarks.checkpoint", file, "--configs", self._configs, "--layout", "ldm"
        )
        sizes["checkpoint_ldm"] = _size(file)
        kind = ("--config", configs) if self._options.small else ("--variant", self._options.variant)
        self._sd2rt("build ldm", "build", file, "-o", bundle, *kind)
        file.unlink()
        self._sd2rt("verify ldm", "verify", bundle)
        hashes = _data_hashes(json.loads((bundle / "bundle.json").read_text()))
        shutil.rmtree(bundle)
        return hashes

    def _peers(
        self, stage: str, bundle: Path, checkpoint: Path, *sides: str, pairs: int = 1
    ) -> dict[str, Any]:
        """Run each side in a separate process; images are saved in the work folder."""
        self._module(
            stage, "benchmarks.peers", "--bundle", bundle, "--checkpoint", checkpoint, "--peers", *sides,
            "--prompt", PROMPT, "--steps", self._options.steps, "--pairs", pairs, "--seed", SEED,
            "--workdir", self._folder / "peers", "--images", self._folder,
        )  # fmt: skip
        results: dict[str, Any] = json.loads(self._stages[stage].stdout.splitlines()[-1])["peers"]
        for side in sides:
            if not results[side]["available"]:
                sys.exit(f"{side}: {results[side]['reason']}")
        return results

    def _module(self, stage: str, module: str, *arguments: object) -> None:
        self._stage(stage, [sys.executable, "-m", module, *map(str, arguments)])

    def _sd2rt(self, stage: str, *arguments: object) -> None:
        self._stage(stage, sd2rt(*map(str, arguments)))

    def _stage(self, stage: str, command: list[str]) -> None:
        self._loads[stage] = machine.load_average()
        self._stages[stage] = process.measure_stage(stage, command, self._env)

    def _measured(self, stage: str) -> dict[str, Any]:
        measured = self._stages[stage]
        return measured.facts() | {
            "peak_anonymous_bytes": measured.peak_anonymous_bytes,
            "load_average_before": self._loads[stage],
        }

    def _builds(self) -> dict[str, Any]:
        builds = [measured for stage, measured in self._stages.items() if stage.startswith("build")]
        seconds, peak = max(b.seconds for b in builds), max(b.peak_rss_bytes for b in builds)
        return {
            "seconds": {
                "value": round(seconds, 2),
                "bound": BUILD_SECONDS_BOUND,
                "holds": seconds <= BUILD_SECONDS_BOUND,
            },
            "peak_rss_bytes": {
                "value": peak,
                "bound": BUILD_BYTES_BOUND,
                "holds": peak <= BUILD_BYTES_BOUND,
            },
        }


def _comparison(both: dict[str, Any], alone: dict[str, dict[str, Any]], equal: bool) -> dict[str, Any]:
    """Image differences and times of both sides. Ratios are taken within each pair, so that drift cancels."""
    difference = both["sd2rt"]["image"]
    psnr = difference["psnr_db"]
    return {
        **{name: difference[name] for name in DIFFERENCE},
        "bounds": {
            "max_pixel": {"bound": PIXEL_BOUND, "holds": difference["max_pixel"] <= PIXEL_BOUND},
            "psnr_db": {"bound": PSNR_BOUND, "holds": psnr is None or psnr >= PSNR_BOUND},
        },
        "cli_image_equal": equal,
        **{
            side: {time: both[side][time] for time in TIMES}
            | {
                "peak_rss_bytes": both[side]["peak_rss_bytes"],
                "alone_seconds_per_step": alone[side][side]["seconds_per_step"]["median"],
            }
            for side in SIDES
        },
        "diffusers_over_sd2rt": both["diffusers"]["ratio"]["sd2rt"],
    }


def _same_picture(png: Path, image: Path) -> bool:
    """Return True if the command's PNG has the pixels of the API's image, [H, W, 3] in [0, 1]."""
    return bool(np.array_equal(np.asarray(Image.open(png)), eight_bits(np.load(image))))


def _data_hashes(manifest: dict[str, Any]) -> dict[str, str]:
    return {
        file["path"]: file["sha256"]
        for part in manifest["parts"].values()
        for file in part["files"]
        if file["path"].endswith(".data")
    }


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = [(f"{name}, parameters", f"{count:,}", "", "") for name, count in result["parameters"].items()]
    rows += [(f"{name}, GB", f"{size / 1e9:.2f}", "", "") for name, size in result["bytes"].items()]
    for name, stage in result["stages"].items():
        build = name.startswith("build")
        bounds = (BUILD_SECONDS_BOUND, BUILD_BYTES_BOUND) if build else (None, None)
        for unit, value, bound in (
            ("s", stage["seconds"], bounds[0]),
            ("peak GB", stage["peak_rss_bytes"] / 1e9, bounds[1] and bounds[1] / 1e9),
        ):
            limit = "" if bound is None else f"<= {bound:g}"
            rows.append(
                (f"{name}, {unit}", f"{value:.2f}", limit, "" if bound is None else _yes(value <= bound))
            )
    if result["equal_weights"] is not None:
        rows.append(("both formats, equal weights", "", "", _yes(result["equal_weights"])))
    comparison = result["comparison"]
    bounds = comparison["bounds"]
    psnr = comparison["psnr_db"]
    rows += [
        (
            "largest pixel difference of 255",
            str(comparison["max_pixel"]),
            f"<= {PIXEL_BOUND}",
            _yes(bounds["max_pixel"]["holds"]),
        ),
        (
            "PSNR, dB",
            "inf" if psnr is None else f"{psnr:.1f}",
            f">= {PSNR_BOUND:g}",
            _yes(bounds["psnr_db"]["holds"]),
        ),
        ("command and API give the same image", "", "", _yes(comparison["cli_image_equal"])),
    ]
    for side in ("sd2rt", "diffusers"):
        for key, label in (("seconds_per_step", "s/step"), ("seconds_per_image", "s/image")):
            rows.append((f"{side}, {label}", _spread(comparison[side][key]), "", ""))
        rows.append((f"{side}, peak GB", f"{comparison[side]['peak_rss_bytes'] / 1e9:.2f}", "", ""))
    for key, label in (("seconds_per_step", "step"), ("seconds_per_image", "image")):
        rows.append(
            (f"diffusers / sd2rt, time per {label}", _spread(comparison["diffusers_over_sd2rt"][key]), "", "")
        )
    return rows


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


if __name__ == "__main__":
    main()
