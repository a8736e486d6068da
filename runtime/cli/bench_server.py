"""`sd2rt bench --serve`: measure a running server under load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sd2rt.engines.console import given_options, progress_bar
from sd2rt.engines.errors import RequestError
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.engines.printable import shown
from sd2rt.runtime.rows.option_text import numbers

if TYPE_CHECKING:
    from sd2rt.runtime.bench.serving.sweep import SweepSettings, Tell

_KEY_VARIABLE = "SD2RT_API_KEY"
_WITH_SERVER = {"prompt", "seed", "output", "as_json", "quiet"}
"""Options of `sd2rt bench` that apply to a server too."""
_MAX_STEPS, _MAX_RATE = 1000, 10_000.0


@dataclass(frozen=True, slots=True)
class ServerOptions(OptionGroup):
    """Load on a running server, instead of a bundle in this process."""

    panel: ClassVar[str] = "Server"

    serve: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Measure the server there: latency and goodput by rate of requests."
        ),
    ] = None
    model: Annotated[str | None, typer.Option(help="Name of its model; default: the first.")] = None
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,...",
            help="Requests a second, arriving at random; default: 0.5, 1, 1.5 and 2 times what it makes one by one.",
            show_default=False,
        ),
    ] = None
    seconds: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds of arrivals at each rate.")] = (
        30.0
    )
    steps_of: Annotated[
        str, typer.Option("--steps-of", metavar="N,N,...", help="Each request draws its steps from these.")
    ] = "4,20,20,30,50"
    objective: Annotated[
        float,
        typer.Option(min=1.0, max=1e6, help="A request is good within so many times what it takes alone."),
    ] = 3.0
    api_key: Annotated[
        str | None,
        typer.Option(help=f"Key of the server; better in {_KEY_VARIABLE}, which others cannot see."),
    ] = None
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw goodput and latency by rate: a .png or .svg.")
    ] = None

    def settings(self, context: typer.Context, prompt: str, seed: int) -> SweepSettings | None:
        """Return what to measure, or None if no server is given.

        Raises:
            RequestError: a value is wrong, or an option is of the other kind of measurement.
        """
        own = {field.name for field in fields(type(self))}
        given = given_options(context)
        if self.serve is None:
            if wrong := sorted(given & own):
                raise RequestError(f"{_option(wrong[0])} is for a server: add --serve URL")
            return None
        if wrong := sorted(given - own - _WITH_SERVER):
            name = "a bundle" if wrong[0] == "bundle" else _option(wrong[0])
            raise RequestError(f"{name} is not for --serve, which measures a running server: leave it out")
        from sd2rt.runtime.bench.serving.client import Target
        from sd2rt.runtime.bench.serving.sweep import SweepSettings

        steps = _numbers("--steps-of", self.steps_of, 1, _MAX_STEPS)
        if any(count != int(count) for count in steps):
            raise RequestError(f"--steps-of {shown(self.steps_of)}: steps are whole numbers")
        return SweepSettings(
            target=Target(
                self.serve, os.environ.get(_KEY_VARIABLE) if self.api_key is None else self.api_key
            ),
            prompt=prompt,
            model=self.model,
            rates=() if self.rates is None else _numbers("--rates", self.rates, 1e-3, _MAX_RATE),
            seconds=self.seconds,
            steps=tuple(map(int, steps)),
            objective=self.objective,
            seed=seed,
        )


@contextmanager
def load_bar(hidden: bool) -> Iterator[Tell]:
    """Show how many requests of a rate are answered; yields a function to call with that."""
    with progress_bar("{task.description}", "bar", "count", hidden=hidden, transient=True) as bar:
        if bar is None:
            yield lambda stage, done, total: None
            return
        task = bar.add_task("", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield tell


def measure_server(
    settings: SweepSettings, plot: Path | None, *, hidden: bool
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Measure a server, and draw the plot; returns the result, and a function that prints its table."""
    from sd2rt.runtime.bench.serving.sweep import measure
    from sd2rt.runtime.bench.serving.tables import check_plot, draw, show

    if plot is not None:
        check_plot(plot)
    with load_bar(hidden) as tell:
        result = measure(settings, tell)
    if plot is not None:
        draw(result, plot)
    return result, lambda: show(result)


def _numbers(option: str, text: str, low: float, high: float) -> tuple[float, ...]:
    values = numbers(option, text) or ()
    if not all(low <= value <= high for value in values):
        raise RequestError(f"{option} {shown(text)}: use numbers from {low:g} to {high:g}")
    return tuple(dict.fromkeys(values)) if option == "--rates" else values


def _option(name: str) -> str:
    return "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
