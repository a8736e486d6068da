"""`sd2rt run`: prompts in, PNG files out."""

from __future__ import annotations

import json
import secrets
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from sd2rt.engines.console import given_options, print_path, report
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.runtime.cli.console import shown_warnings, step_bar
from sd2rt.runtime.cli.demo_bundle import bundle_or_demo
from sd2rt.runtime.cli.options import (
    ImageOptions,
    OutputOptions,
    PromptOptions,
    SamplingOptions,
    SeedOptions,
    TiledDeviceOptions,
)
from sd2rt.runtime.cli.run_arguments import (
    bundle_and_prompts,
    check_standard_input,
    prompts_of_standard_input,
)
from sd2rt.runtime.cli.run_generation import check_upscaling, generate
from sd2rt.runtime.cli.run_output import check_output, check_save_depth, save_image
from sd2rt.runtime.cli.run_recipe import AppliedRecipe, RunSettings
from sd2rt.runtime.cli.run_requests import ImageRequests

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.runtime.pipeline.pipeline import Pipeline


def run(
    context: typer.Context,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    images: ImageOptions,
    seeds: SeedOptions,
    device: TiledDeviceOptions,
    output: OutputOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] PROMPT",
            help="A bundle (a folder, or a name in the cache; default: the demo) and a prompt; "
            "- reads prompts from standard input, one a line.",
            show_default=False,
        ),
    ] = None,
    recipe_of: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PNG",
            help="Reproduce this PNG from its metadata; other options override it.",
            rich_help_panel=PromptOptions.panel,
        ),
    ] = None,
) -> None:
    """Make images from a bundle."""
    from sd2rt.engines.bundle.manifest import read_manifest
    from sd2rt.engines.bundle.reader import locate
    from sd2rt.engines.bundle.sizes import TILE

    bundle, prompts = bundle_and_prompts(words or [], recipe_of is not None)
    check_standard_input(prompts, {"--from": recipe_of, **images.files()})
    settings = RunSettings(
        bundle,
        prompts,
        prompt.fields() | sampling.fields() | images.fields() | seeds.fields(),
        seeds.seed,
        device.tile,
        images.upscale,
        images.noise_level,
    )
    recipe = None
    if recipe_of is not None:
        from sd2rt.runtime.metadata.recipe import read_recipe

        recipe = AppliedRecipe(read_recipe(recipe_of), settings, given_options(context))
    # Everything is checked before a bundle is opened or built: a typing mistake should not cost a minute.
    requests = ImageRequests(
        settings.prompts or prompts_of_standard_input(),
        seeds.count,
        settings.fields,
        secrets.randbits(32) if settings.seed is None else settings.seed,
    )
    notes = [] if recipe is None else recipe.request_notes(requests.first)
    check_output(output.output, len(requests))
    check_save_depth(output.save_depth, output.output)
    embeddings, loras = prompt.embeddings(), prompt.loras()
    path = bundle_or_demo(settings.bundle, output.quiet or output.as_json)
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.prompts.textual_inversion import check_embedding
    from sd2rt.runtime.request.resolve import require_task

    # The manifest alone shows what a bundle cannot do: gigabytes are loaded only for requests that it can.
    manifest = read_manifest(locate(path))
    planned = requests.planned(manifest)
    for embedding in embeddings:
        check_embedding(embedding, manifest)
    if output.save_depth is not None:
        require_task("depth-to-image", manifest)
    upscaler_manifest = None
    if settings.upscaler is not None:
        upscaler_manifest = read_manifest(locate(settings.upscaler))
        check_upscaling(upscaler_manifest, planned.first, settings.noise_level, embeddings)
    if recipe is not None:
        notes += recipe.bundle_notes(manifest, upscaler_manifest, embeddings, loras)
    if not output.quiet:
        for note in notes:
            report(f"note: {note}")
    opening = device.opening() | {"tile": TILE if settings.tile is None else settings.tile}
    failures, first_failure = 0, ""
    with (
        shown_warnings(output.quiet),
        Pipeline.open(path, **opening, loras=loras) as pipeline,
        nullcontext()
        if settings.upscaler is None
        else Pipeline.open(settings.upscaler, **opening) as upscaler,
        step_bar(hidden=output.quiet or output.as_json, images=len(planned)) as advance,
    ):
        _require_unreplaced(pipeline, manifest)
        if upscaler is not None and upscaler_manifest is not None:
            _require_unreplaced(upscaler, upscaler_manifest)
        for target in (pipeline,) if upscaler is None else (pipeline, upscaler):
            for embedding in embeddings:
                target.add_embedding(embedding)
        for outcome, timing in generate(
            pipeline, upscaler, planned, settings.noise_level, advance, output.save_depth
        ):
            if isinstance(outcome, EngineError):
                first_failure = first_failure or str(outcome)
                failures += 1
                continue
            image, facts = outcome
            saved = save_image(image, facts, output.output)
            if output.as_json:
                print(json.dumps({"path": str(saved), **facts, **timing}), flush=True)
            elif not output.quiet:
                print_path(saved)
    if failures:
        others = f"{failures} of {len(planned)} images failed, the first: " if len(planned) > 1 else ""
        raise EngineError(f"{others}{first_failure}")


def _require_unreplaced(pipeline: Pipeline, planned: Manifest) -> None:
    """Check that the opened bundle is the one that requests were checked with.

    Raises:
        BundleError: another build has replaced it meanwhile.
    """
    if pipeline.manifest.build_key != planned.build_key:
        raise BundleError(f"{pipeline.bundle.path} was replaced while it was opened: run the command again")
