"""Write a checkpoint of random weights, of a published SD2 architecture or a small one; or the trained demo.

    python -m benchmarks.checkpoint PATH --configs stable-diffusion-2-base --layout diffusers
    python -m benchmarks.checkpoint PATH --trained demo-inpaint

A process of its own, so that what measures other processes need not load PyTorch.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sd2rt.export.checkpoints import tiny_configs as random_configs
from sd2rt.export.checkpoints.demo import DEMO_NAMES
from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs
from sd2rt.export.testing.folder_writer import write_demo
from sd2rt.export.testing.random_weights import random_checkpoint

SMALL_NAME = "small"
DEMO_NAME = "demo"
# The demo's networks with SD2's own scheduler: where pictures of several programs are compared, each would have to
# be handed the same fresh noise in every step.
_DEMO = replace(random_configs.DEMO, scheduler=random_configs.SMALL.scheduler)
SMALL = {SMALL_NAME: random_configs.SMALL, DEMO_NAME: _DEMO} | {
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
    parser.add_argument(
        "--trained", choices=tuple(DEMO_NAMES), help="one of the trained demos, as a diffusers folder"
    )
    parser.add_argument("--layout", choices=("diffusers", "ldm"), default="diffusers")
    parser.add_argument("--seed", type=int, help="of the weights: 0, or the demo's own, if left out")
    parser.add_argument(
        "--legacy-keys", action="store_true", help="name the weights as the published files do"
    )
    options = parser.parse_args()
    if options.trained is not None:
        write_demo(options.path, options.trained)
        return
    configs = SMALL.get(options.configs) or PipelineConfigs.packaged(options.configs)
    seed = options.seed
    if seed is None:
        seed = random_configs.DEMO_SEED if options.configs == DEMO_NAME else 0
    random_checkpoint(
        options.path, configs=configs, seed=seed, layout=options.layout, legacy_keys=options.legacy_keys
    )


if __name__ == "__main__":
    main()
