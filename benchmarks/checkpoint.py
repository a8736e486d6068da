"""Write a random-weight checkpoint: of a published SD2 architecture, or of the small one.

    python -m benchmarks.checkpoint PATH --configs stable-diffusion-2-base --layout diffusers

A process of its own, so that what measures other processes need not load PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sd2rt.export import random_configs
from sd2rt.export.pipeline_configs import PipelineConfigs
from sd2rt.export.random_weights import random_checkpoint

SMALL_NAME = "small"
SMALL = {SMALL_NAME: random_configs.SMALL} | {
    f"{SMALL_NAME}-{kind}": configs for kind, configs in random_configs.SMALLS.items()
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--configs", default=SMALL_NAME, help=f"a folder of export/configs, or one of {', '.join(SMALL)}"
    )
    parser.add_argument("--layout", choices=("diffusers", "ldm"), default="diffusers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    configs = SMALL.get(options.configs) or PipelineConfigs.packaged(options.configs)
    random_checkpoint(options.path, configs=configs, seed=options.seed, layout=options.layout)


if __name__ == "__main__":
    main()
