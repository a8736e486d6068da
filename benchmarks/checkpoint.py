"""Write a checkpoint: random weights of a published or small SD2 architecture, or the trained demo.

    python -m benchmarks.checkpoint PATH --configs stable-diffusion-2-base --layout diffusers
    python -m benchmarks.checkpoint PATH --trained demo-inpaint

Runs as a separate process, so that benchmarks that measure other processes need not load PyTorch.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sd2rt.engines.demo.files import DEMO_NAMES
from sd2rt.export.checkpoints import tiny_configs as random_configs
from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs
from sd2rt.export.testing.folder_writer import write_demo
from sd2rt.export.testing.random_weights import random_checkpoint

SMALL_NAME = "small"
DEMO_NAME = "demo"
# The demo's networks with SD2's own scheduler. With the demo's euler-a, which adds noise at every step, images of
# different programs could not be compared.
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
    parser.add_argument("--seed", type=int, help="seed of the weights; default: 0, for demo its own")
    parser.add_argument(
        "--legacy-keys", action="store_true", help="use the weight names of the published files"
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
