"""Prepare the calls of the quick check: `.kit/1`, `.kit/2`..., each with the tree at most 64 MiB.

    python -m benchmarks.gpu.quick.pack --wheels FOLDER            full size: 20 minutes, 25 GB of disk
    python -m benchmarks.gpu.quick.pack --small                    tiny networks, no wheels: a dry run

Weights stay here: graphs travel without them. `--without` names the parts of the tree that `git sparse-checkout`
will leave out of the calls; `python -m benchmarks.gpu.quick.calls` checks the bytes again once it has.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.quick.archive import compress
from benchmarks.gpu.quick.calls import (
    LIMIT_BYTES,
    ROOT,
    OversizedCallError,
    check_calls,
    plan,
    tree_bytes,
    write_calls,
)
from benchmarks.gpu.quick.content import make_content
from benchmarks.gpu.quick.receive import CONTENT
from benchmarks.gpu.quick.settings import VARIANT
from benchmarks.gpu.quick.wheels import BASE, group, unzip
from benchmarks.recording import process

CONFIGS = {False: "stable-diffusion-2-1-base", True: "small-base"}
LEFT_OUT = ("tests", "docs", "engines/demo", "benchmarks/results", "benchmarks/demo", "benchmarks/page")
"""Folders that the calls do not need."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.quick.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels for the other machine's Python")
    parser.add_argument("--small", action="store_true", help="tiny networks of 64x64 pixels")
    parser.add_argument(
        "--kit", type=Path, default=ROOT / ".kit", help="where the calls go; .kit if left out"
    )
    parser.add_argument(
        "--workdir", type=Path, help="keep checkpoint, bundles and archives here, for another try"
    )
    parser.add_argument(
        "--without",
        nargs="*",
        default=list(LEFT_OUT),
        metavar="FOLDER",
        help=f"folders that sparse-checkout removes; {' '.join(LEFT_OUT)} if left out",
    )
    parser.add_argument("--limit-mib", type=float, default=LIMIT_BYTES / (1 << 20), help="of a call")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="quick-pack-") as scratch:
            pack(options, options.workdir or Path(scratch))
    except (OversizedCallError, process.CommandError, ValueError) as error:
        sys.exit(str(error))


def pack(options: argparse.Namespace, workdir: Path) -> None:
    """Write the calls and print their bytes."""
    began = time.perf_counter()
    limit = int(options.limit_mib * (1 << 20))
    tree = tree_bytes(without=options.without)
    # A tree that leaves no room is refused before ten minutes of work.
    plan({}, tree, limit)
    archives = {}
    trees = {BASE: [], **(group(options.wheels) if options.wheels else {})}
    rest = {kit: wheels for kit, wheels in trees.items() if kit != BASE}
    if trees[BASE]:
        archives[BASE] = _packages(BASE, trees[BASE], workdir)
    archives[CONTENT] = compress(_content(options.small, workdir), workdir / "archives" / CONTENT)
    archives |= {kit: _packages(kit, wheels, workdir) for kit, wheels in rest.items()}
    calls = plan({name: path.stat().st_size for name, path in archives.items()}, tree, limit)
    write_calls(archives, calls, options.kit)
    print(
        f"packed in {time.perf_counter() - began:.0f} s; tree without {', '.join(options.without)}: {tree:,} bytes"
    )
    for line in check_calls(options.kit, tree, limit):
        print(line)


def _packages(kit: str, wheels: list[Path], workdir: Path) -> Path:
    target = workdir / "archives" / kit
    listing = workdir / "archives" / f"{kit}.txt"
    names = "\n".join(wheel.name for wheel in wheels)
    if target.is_file() and listing.is_file() and listing.read_text() == names:
        return target
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        unzip(wheels, Path(folder))
        compress(Path(folder), target)
    listing.write_text(names)
    return target


def _content(small: bool, workdir: Path) -> Path:
    """Graphs and references, from a checkpoint of random weights in both precisions; bundles that exist are kept."""
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint = workdir / "checkpoint"
    if not checkpoint.is_dir():
        unfinished = workdir / "checkpoint.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.checkpoint",
            str(unfinished),
            "--configs",
            CONFIGS[small],
        ]
        process.measure_stage("checkpoint", command, dict(os.environ))
        unfinished.rename(checkpoint)
    bundles = {}
    for precision in ("fp16", "fp32"):
        bundles[precision] = workdir / f"bundle-{precision}"
        words = (
            "build",
            checkpoint,
            "-o",
            bundles[precision],
            "--variant",
            VARIANT,
            "--precision",
            precision,
        )
        process.measure_stage(f"bundle {precision}", process.sd2rt(*words), dict(os.environ))
    content, began = workdir / CONTENT, time.perf_counter()
    shutil.rmtree(content, ignore_errors=True)
    unet = checkpoint / "unet" / "config.json"
    make_content(bundles["fp16"], bundles["fp32"], unet, content, workdir / "drawn")
    print(f"references in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return content


if __name__ == "__main__":
    main()
