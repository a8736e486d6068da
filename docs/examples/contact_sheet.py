"""Generate several prompts in shared batches, each with its own sampler and steps, on one contact sheet.

python contact_sheet.py demo sheet.png
"""

from __future__ import annotations

import argparse
import sys

from PIL import Image

from sd2rt import Pipeline, Request, Sd2rtError

PROMPTS = {
    "a large red circle on a white background": ("euler", 20),
    "a small blue square on a gray background": ("dpmpp-2m", 12),
    "a green triangle on a black background": ("ddim", 25),
    "a yellow cross on a white background": ("unipc", 16),
}
"""Prompts, each with a sampler and steps."""


def sheet(pipe: Pipeline, seed: int) -> Image.Image:
    """Return the images side by side. Each step is one network call for all unfinished images."""
    requests = [
        Request(prompt=prompt, sampler=sampler, num_inference_steps=steps, guidance_scale=4.0, seed=seed)
        for prompt, (sampler, steps) in PROMPTS.items()
    ]
    with pipe.stream_requests(requests) as run:
        for progress in run:
            print(f"\r{progress.done} of {progress.total} steps", end="", file=sys.stderr)
        print(file=sys.stderr)
        images = [output.images[0] for output in run.result()]
    width, height = images[0].size
    together = Image.new("RGB", (width * len(images), height))
    for index, image in enumerate(images):
        together.paste(image, (index * width, 0))
    return together


def main() -> None:
    parser = argparse.ArgumentParser(description="Four prompts on one sheet.")
    parser.add_argument("bundle", help="a folder, or a name in the cache")
    parser.add_argument("output", help="a .png file")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        with Pipeline.open(options.bundle) as pipe:
            sheet(pipe, options.seed).save(options.output)
    except Sd2rtError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
