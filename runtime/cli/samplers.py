"""`sd2rt samplers`: list the samplers with their options, and plot their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, NoiseConfig
from sd2rt.engines.console import print_path, table_console
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.cli.shell import names as names_to_complete
from sd2rt.runtime.rows import option_text

if TYPE_CHECKING:
    from sd2rt.runtime.samplers.plan import Plan

_SD2 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""The noise schedule of every SD2 checkpoint."""


def samplers(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Samplers; default: all of them.",
            show_default=False,
            autocompletion=names_to_complete.samplers,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Plot noise levels, timesteps and coefficients of each step to this PNG or SVG."),
    ] = None,
    steps: Annotated[int, typer.Option(help="plot: sampler steps.")] = 20,
    schedule: Annotated[str | None, typer.Option(help="plot: schedule, as for `sd2rt run`.")] = None,
    sampler_option: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler-option", metavar="NAME=VALUE", help="plot: such as solver_order=3; repeatable."
        ),
    ] = None,
    eta: Annotated[float, typer.Option(help="plot: share of fresh noise of ddim, tcd and dpm-fast.")] = 0.0,
    prediction: Annotated[
        str, typer.Option(help="plot: prediction type of the network: epsilon or v_prediction.")
    ] = "epsilon",
) -> None:
    """List the samplers with their options; plot their tables."""
    from sd2rt.runtime.samplers import (
        SAMPLERS,
        SamplingOptions,
        choices_of,
        make_plan,
        sampler_config,
        schedules_of,
    )

    chosen = (
        [sampler_config(option_text.sampler_and_schedule(name, None)["sampler"]).name for name in names]
        if names
        else list(SAMPLERS)
    )
    if plot is None and (schedule is not None or sampler_option):
        raise RequestError("--schedule and --sampler-option need --plot: add it")
    if plot is not None:
        if prediction not in ("epsilon", "v_prediction"):
            raise RequestError(f"--prediction is {prediction!r}: choose epsilon or v_prediction")
        noise = NoiseConfig.model_validate({**_SD2, "prediction_type": prediction})
        options = option_text.sampler_options(sampler_option or [])
        plans: dict[str, Plan] = {}
        for name in chosen:
            config = sampler_config(
                name,
                schedule=option_text.sampler_and_schedule(None, schedule).get("schedule"),
                options=options,
            )
            takes_eta = "eta" in SAMPLERS[name].noise
            sampling = SamplingOptions(steps, eta=eta if takes_eta or len(chosen) == 1 else 0.0)
            plans[name] = make_plan(noise, config, sampling)
        from sd2rt.runtime.cli.samplers_plot import draw

        draw(plans, plot)
        if not as_json:
            print_path(plot)
            return
    facts: list[dict[str, Any]] = [
        {
            "name": name,
            "title": SAMPLERS[name].title,
            "paper": SAMPLERS[name].paper,
            "order": SAMPLERS[name].order,
            "evaluations_per_step": SAMPLERS[name].evaluations,
            "noise": SAMPLERS[name].noise,
            "schedules": schedules_of(name),
            "options": SAMPLER_OPTIONS[name],
            "choices": choices_of(name),
        }
        for name in chosen
    ]
    if as_json:
        print(json.dumps(facts))
        return
    from rich.table import Table

    console = table_console(160)
    table = Table(
        "name", "method", "order", "calls a step", "noise", "schedules", box=None, padding=(0, 2, 0, 0)
    )
    for each in facts:
        schedules = ", ".join(each["schedules"]) or "its own"
        cells = (each["title"], each["order"], each["evaluations_per_step"], each["noise"], schedules)
        table.add_row(each["name"], *map(str, cells))
    console.print(table)
    if not names:
        return
    for each in facts:
        console.print(
            f"\n{each['name']}: options for --sampler-option, as JSON, with their defaults", style="bold"
        )
        for option, value in each["options"].items():
            choices = each["choices"].get(option)
            console.print(
                f"  {option}={json.dumps(value)}{'' if choices is None else f'  ({_either(choices)})'}"
            )


def _either(choices: tuple[Any, ...]) -> str:
    return " or ".join(json.dumps(choice) for choice in choices)
