"""`sd2rt run`: prompts in, PNG files out."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from sd2rt.engines.bundle.cache import complete_bundle
from sd2rt.engines.console import given_options, report
from sd2rt.engines.errors import BundleError, EngineError, RequestError
from sd2rt.runtime.cli.console import shown_warnings, step_bar
from sd2rt.runtime.cli.demo_bundle import bundle_or_demo
from sd2rt.runtime.cli.device_options import TiledDeviceOptions
from sd2rt.runtime.cli.options import (
    ImageOptions,
    PromptOptions,
    SamplingOptions,
    SeedOptions,
)
from sd2rt.runtime.cli.output_options import OutputOptions
from sd2rt.runtime.cli.provenance.options import StampOptions
from sd2rt.runtime.cli.rows.standard_input import rows_of_standard_input
from sd2rt.runtime.cli.run_arguments import bundle_and_prompts, check_standard_input, lookalike_notes
from sd2rt.runtime.cli.run_generation import (
    bundled_note,
    check_second_pass,
    check_upscaling,
    finished_size,
    generate,
    made_again,
    without_effect,
)
from sd2rt.runtime.cli.run_output import (
    Failures,
    ImageFiles,
    check_save_depth,
    placed,
    refused,
    safety_of,
)
from sd2rt.runtime.cli.run_recipe import AppliedRecipe, RunSettings
from sd2rt.runtime.cli.shell.preview import preview_of
from sd2rt.runtime.rows import option_text
from sd2rt.runtime.rows.row import Row
from sd2rt.runtime.rows.series import RANDOM, Series

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.rows.image_requests import PlannedImages


def run(
    context: typer.Context,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    images: ImageOptions,
    seeds: SeedOptions,
    device: TiledDeviceOptions,
    output: OutputOptions,
    marks: StampOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE] PROMPT",
            help="A bundle (a folder, or a name in the cache; default: the demo) and a prompt; "
            "- reads prompts from standard input, each line as it comes: text, or JSON with its own options.",
            show_default=False,
            autocompletion=complete_bundle,
        ),
    ] = None,
    recipe_of: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="IMAGE",
            help="Reproduce a picture of sd2rt, AUTOMATIC1111, ComfyUI, SwarmUI, InvokeAI or Fooocus from its "
            "metadata; other options override it.",
            rich_help_panel=PromptOptions.panel,
        ),
    ] = None,
    hires: Annotated[
        bool,
        typer.Option(
            "--hires/--no-hires",
            help="Make the second pass (hires fix) of a picture given by --from.",
            rich_help_panel=PromptOptions.panel,
        ),
    ] = True,
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
        hires,
    )
    folder = prompt.lora_folder()
    recipe = None
    if recipe_of is not None:
        from sd2rt.runtime.metadata.recipe import read_recipe

        recipe = AppliedRecipe(read_recipe(recipe_of), settings, given_options(context))
        # What a schedule's name means depends on the grid, which may be the recipe's.
        grid = settings.fields["grid"]
        settings.fields |= option_text.sampler_and_schedule(sampling.sampler, sampling.schedule, grid)
    # Everything is checked before a bundle is opened or built: a typing mistake should not cost a minute.
    series = Series(settings.fields, seeds.count, None if settings.seed == RANDOM else settings.seed, folder)
    rows = rows_of_standard_input() if settings.prompts is None else iter([Row(0, settings.prompts[0])])
    with shown_warnings(output.quiet):
        requests = series.first(next(rows))
    notes = [] if recipe is None else recipe.request_notes(requests.first)
    notes += lookalike_notes(bundle, requests.first.prompt)
    stamps = marks.stamps()
    files = ImageFiles(output, stamps)
    files.check(len(requests))
    check_save_depth(output.save_depth, output.output)
    show = preview_of(output.preview)
    if output.safety is not None and show is not None:
        raise RequestError("--preview shows images before --safety can check them: leave one out")
    safety = safety_of(output)
    embeddings = prompt.embeddings()
    from sd2rt.runtime.prompts.textual_inversion import check_embedding, embeddings_of_lora

    named = series.named_loras or ()
    loras = prompt.loras([*(() if recipe is None else recipe.named_loras(folder, prompt.lora)), *named])
    bundled = [(lora, embeddings_of_lora(lora)) for lora in loras]
    quiet = output.quiet or output.as_json
    path = bundle_or_demo(settings.bundle, quiet)
    upscaler_path = None if settings.upscaler is None else bundle_or_demo(settings.upscaler, quiet)
    from sd2rt.runtime.pipeline.pipeline import Pipeline
    from sd2rt.runtime.request.resolve import require_task

    with shown_warnings(output.quiet):
        # The manifest alone shows what a bundle cannot do: gigabytes are loaded only for requests that it can.
        manifest = read_manifest(locate(path))
        first = requests.planned(manifest, loras)
        of_loras = [embedding for _, each in bundled for embedding in each]
        for embedding in (*embeddings, *of_loras):
            check_embedding(embedding, manifest)
        if output.save_depth is not None:
            require_task("depth-to-image", manifest)
        if settings.second_pass is not None:
            check_second_pass(settings.second_pass, manifest, first.first)
        upscaler_manifest = None
        if upscaler_path is not None:
            upscaler_manifest = read_manifest(locate(upscaler_path))
            check_upscaling(upscaler_manifest, first.first, settings.noise_level, embeddings)

        def check_size(planned: PlannedImages) -> None:
            size = finished_size(manifest, planned.first, settings.second_pass, upscaler_manifest)
            stamps.check_size(*size)

        check_size(first)
        if recipe is not None:
            notes += recipe.bundle_notes(manifest, upscaler_manifest, [*embeddings, *of_loras], loras)
        notes += [bundled_note(lora.name, each) for lora, each in bundled if each]
        if not output.quiet:
            for note in notes:
                report(f"note: {note}")
        opening = device.opening(path) | {"tile": TILE if settings.tile is None else settings.tile}
        failures = Failures()
        with (
            Pipeline.open(path, **opening, loras=loras) as pipeline,
            nullcontext() if upscaler_path is None else Pipeline.open(upscaler_path, **opening) as upscaler,
            step_bar(
                hidden=quiet or output.preview == "kitty", images=None if prompts is None else len(first)
            ) as advance,
        ):
            place = placed(pipeline)
            _require_unreplaced(pipeline, manifest)
            if upscaler is not None and upscaler_manifest is not None:
                _require_unreplaced(upscaler, upscaler_manifest)
            for target in (pipeline,) if upscaler is None else (pipeline, upscaler):
                for embedding in embeddings if target is pipeline else (*embeddings, *of_loras):
                    target.add_embedding(embedding)
            save_depth = output.save_depth
            finish = None
            if settings.second_pass is not None:
                finish = partial(made_again, pipeline, settings.second_pass, advance)
            for row in chain([first], series.planned(rows, manifest, loras, check_size)):
                if isinstance(row, RequestError):
                    failures.add_row(row)
                    continue
                drawn = generate(
                    pipeline, upscaler, row, settings.noise_level, advance, save_depth, show, finish
                )
                save_depth = None
                for outcome, timing in drawn:
                    if isinstance(outcome, EngineError):
                        failures.add(outcome)
                        continue
                    image, facts = outcome
                    if safety is not None and (refusal := refused(safety, image)) is not None:
                        failures.add(refusal)
                        continue
                    failures.made += 1
                    files.save(image, facts | place, timing)
            if not output.quiet:
                for note in without_effect(pipeline, first.first.prompt_syntax):
                    report(f"note: {note}")
    failures.check()


def _require_unreplaced(pipeline: Pipeline, planned: Manifest) -> None:
    """Check that the opened bundle is the one that requests were checked with.

    Raises:
        BundleError: another build has replaced it meanwhile.
    """
    if pipeline.manifest.build_key != planned.build_key:
        raise BundleError(f"{pipeline.bundle.path} was replaced while it was opened: run the command again")
