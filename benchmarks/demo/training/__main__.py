"""Train stages of the demo checkpoints: ``python -m benchmarks.demo.training STAGE ...``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.demo.training.loop import Interrupted
from benchmarks.demo.training.stages import STAGES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo.training", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument(
        "--folder", type=Path, default=Path("out/training"), help="folder of the weights, read and written"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        for stage in options.stages:
            STAGES[stage](options.folder)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
