"""`sd2rt run`: prompts in, PNG files out."""

from __future__ import annotations

import json
import secrets
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sd2rt.engines.console import given_options
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.cli import options, parsing
from sd2rt.runtime.cli.console import shown_warnings, step_bar
from sd2rt.runtime.cli.demo_bundle import bundle_or_demo
from sd2rt.runtime.cli.run_arguments import (
    bundle_and_prompts,
    check_standard_input,
    prompts_of_standard_input,
)
from sd2rt.runtime.cli.run_generation import check_upscaling, generate
from sd2rt.runtime.cli.run_output import check_output, check_save_depth, save_image
from sd2rt.runtime.cli.run_recipe import AppliedRecipe, RunSettings


def run(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] PROMPT",
            help="A bundle (a folder, or a name in the cache; the demo if left out) and a prompt; "
            "- reads prompts from standard input, one a line.",
            show_default=False,
        ),
    ] = None,
    recipe_of: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PNG",
            help="Make this picture again, as it tells itself; what else is given takes the place of what it says.",
        ),
    ] = None,
    negative: Annotated[str, typer.Option(help="What the images should not show.")] = "",
    prompt_syntax: Annotated[
        str,
        typer.Option(help="plain; or a1111: (weights:1.3), AND, BREAK, [edits:by step:0.4], any length."),
    ] = "plain",
    clip_skip: Annotated[
        int | None, typer.Option(help="Layers of the text encoder to leave out at the end.")
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="[TOKEN=]PATH", help="A textual inversion that prompts can name; repeatable."),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .pt and .bin embeddings: tensors only, no code.")
    ] = False,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]", help="A LoRA to make the images with, at scale 1 if left out; repeatable."
        ),
    ] = None,
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
    steps: options.Steps = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE[,SCALE...]",
            help="Guidance scale, 1 or less turns it off; the bundle's own if left out. Several are spread "
            "evenly over the steps: 9,3 falls from 9 to 3.",
        ),
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", help="Noise levels (sigmas) within which steps are guided."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="turbo or lcm: sampler, schedule, steps and guidance that such weights take."),
    ] = None,
    rescale: Annotated[float, typer.Option(help="Guidance rescale, 0 to 1.")] = 0.0,
    sampler: options.Sampler = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="leading, trailing, linspace, karras, exponential, beta, lambdas or ays."),
    ] = None,
    sampler_option: Annotated[
        list[str] | None,
        typer.Option("--sampler-option", metavar="NAME=VALUE", help="Such as solver_order=3; repeatable."),
    ] = None,
    zero_snr: Annotated[
        bool | None,
        typer.Option(
            "--zero-snr/--no-zero-snr",
            help="Make the last timestep pure noise; as the checkpoint says if left out.",
            show_default=False,
        ),
    ] = None,
    timesteps: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="The timesteps themselves, in the place of --steps.")
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...", help="Noise levels, in the place of --steps; the last is what is left."
        ),
    ] = None,
    eta: Annotated[float, typer.Option(help="ddim, tcd: share of fresh noise, 0 to 1.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; image i uses seed + i.")] = None,
    rng: Annotated[
        str,
        typer.Option(
            help="Whose random numbers: cpu or cuda, torch's; cuda:N of a GPU of N multiprocessors."
        ),
    ] = "cpu",
    variation: Annotated[
        str | None,
        typer.Option(
            metavar="SEED:STRENGTH",
            help="Move the noise towards another seed's, up to strength 1; image i moves towards SEED + i.",
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, multiples of 64.")] = None,
    count: Annotated[int, typer.Option(help="Images per prompt.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file, or a folder for files named by seed.")
    ] = Path("."),
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
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
    bundle, prompts = bundle_and_prompts(words or [], recipe_of is not None)
    check_standard_input(prompts, {"--from": recipe_of, "--image": image, "--mask": mask, "--depth": depth})
    fields: dict[str, Any] = {
        "negative_prompt": negative,
        "prompt_syntax": prompt_syntax,
        "clip_skip": clip_skip,
        "num_inference_steps": steps,
        "guidance_scale": parsing.one_or_more("--guidance", guidance),
        "guidance_rescale": rescale,
        "guidance_interval": parsing.numbers("--guidance-interval", guidance_interval, between=":"),
        "preset": preset,
        "sampler": sampler,
        "schedule": schedule,
        "sampler_options": parsing.sampler_options(sampler_option or []),
        "rescale_betas_zero_snr": zero_snr,
        "timesteps": parsing.numbers("--timesteps", timesteps),
        "sigmas": parsing.numbers("--sigmas", sigmas),
        "eta": eta,
        "rng": rng,
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
        fields["max_image_pixels"] = max_image_pixels
    if size is not None:
        fields["width"], fields["height"] = parsing.size(size)
    if variation is not None:
        fields["variation_seed"], fields["variation_strength"] = parsing.variation(variation)
    settings = RunSettings(bundle, prompts, fields, seed, tile, upscale, noise_level)
    recipe = None
    if recipe_of is not None:
        from sd2rt.runtime.metadata.recipe import read_recipe

        recipe = AppliedRecipe(read_recipe(recipe_of), settings, given_options(context))
    from sd2rt.engines.lora.file import named_loras
    from sd2rt.runtime.request.call import split_call
    from sd2rt.runtime.request.fields import CallOptions
    from sd2rt.runtime.request.sampling import check_names, plan_of

    # Checked before anything is opened or built: a slip of the keyboard should not cost a minute.
    each = [
        prompt for prompt in settings.prompts or prompts_of_standard_input() for _ in range(_count(count))
    ]
    first = secrets.randbits(32) if settings.seed is None else settings.seed
    requests = split_call(each, cast(CallOptions, {**settings.fields, "seed": first}))
    check_names(requests[0])
    notes = [] if recipe is None else recipe.request_notes(requests[0])
    check_output(output, len(requests))
    embeddings = [parsing.embedding(text, allow_pickle) for text in embedding or ()]
    loras = named_loras(lora or [])
    check_save_depth(save_depth, output)
    from sd2rt.engines.bundle.manifest import read_manifest
    from sd2rt.engines.bundle.reader import locate
    from sd2rt.engines.bundle.sizes import TILE
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.prompts.textual_inversion import check_embedding
    from sd2rt.runtime.request.resolve import refuse_unless, resolve

    path = bundle_or_demo(settings.bundle, quiet or as_json)
    # What a bundle does not do stands in its manifest: that is told before gigabytes are loaded.
    manifest = read_manifest(locate(path))
    requests = [resolve(request, manifest) for request in requests]
    plan_of(requests[0], manifest)
    for known in embeddings:
        check_embedding(known, manifest)
    if save_depth is not None:
        refuse_unless("depth-to-image", manifest)
    larger = None
    if settings.upscaler is not None:
        larger = read_manifest(locate(settings.upscaler))
        check_upscaling(larger, requests[0], settings.noise_level, embeddings)
    if recipe is not None:
        notes += recipe.bundle_notes(manifest, larger, embeddings, loras)
    if not quiet:
        for note in notes:
            print(f"sd2rt: note: {note}", file=sys.stderr)
    opening: dict[str, Any] = {
        "device": device,
        "backend": backend,
        "precision": precision,
        "threads": threads,
        "tile": TILE if settings.tile is None else settings.tile,
    }
    with (
        shown_warnings(quiet),
        Pipeline.open(path, **opening, loras=loras) as pipeline,
        nullcontext()
        if settings.upscaler is None
        else Pipeline.open(settings.upscaler, **opening) as upscaler,
        step_bar(hidden=quiet or as_json, images=len(requests)) as advance,
    ):
        for target in (pipeline,) if upscaler is None else (pipeline, upscaler):
            for known in embeddings:
                target.add_embedding(known)
        failures: list[EngineError] = []
        for outcome, timing in generate(
            pipeline, upscaler, requests, settings.noise_level, advance, save_depth
        ):
            if isinstance(outcome, EngineError):
                failures.append(outcome)
                continue
            picture, facts = outcome
            saved = save_image(picture, facts, output)
            if as_json:
                print(json.dumps({"path": str(saved), **facts, **timing}), flush=True)
            elif not quiet:
                print(saved, flush=True)
    if failures:
        others = f"{len(failures)} of {len(requests)} images failed, the first: " if len(requests) > 1 else ""
        raise EngineError(f"{others}{failures[0]}")


def _count(count: int) -> int:
    if count < 1:
        raise RequestError(f"--count is {count}: give at least 1")
    return count
