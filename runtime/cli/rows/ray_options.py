"""Options of `sd2rt batch` for Ray, which is imported if they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from sd2rt.engines.errors import RequestError
from sd2rt.engines.option_groups import OptionGroup

if TYPE_CHECKING:
    from sd2rt.runtime.ray.job import Job
    from sd2rt.runtime.rows.drawing import Tally
    from sd2rt.runtime.rows.row import Row


@dataclass(frozen=True, slots=True)
class RayOptions(OptionGroup):
    """Processes, or machines, that share the rows."""

    panel: ClassVar[str] = "Ray"

    ray: Annotated[
        bool, typer.Option("--ray", help="Draw with actors of Ray, on this machine or a cluster; extra: ray.")
    ] = False
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster, such as auto; its machines share the output folder. Default: this machine alone.",
            show_default=False,
        ),
    ] = None
    actors: Annotated[int | None, typer.Option(min=1, help="Number of actors; default: 1.")] = None
    actor_cpus: Annotated[
        float | None,
        typer.Option(min=0, help="CPUs of an actor, as Ray reserves them; default: its --threads, or 1."),
    ] = None
    actor_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of an actor, or a fraction; default: 1 with --device cuda."),
    ] = None
    rows_in_flight: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows that an actor draws at a time; default: twice a denoiser call's images."
        ),
    ] = None
    rows_per_part: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows that are written together; a kill costs those of parts under way; default: 16."
        ),
    ] = None
    to: Annotated[
        Literal["folder", "parquet", "webdataset"],
        typer.Option(help="Files of --ray: images with manifest.jsonl, or parts of Parquet or WebDataset."),
    ] = "folder"

    def check(self) -> None:
        """Check that options for Ray come with it.

        Raises:
            RequestError: they do not.
        """
        given = {"--ray-address": self.ray_address, "--actors": self.actors, "--actor-cpus": self.actor_cpus}
        given |= {"--actor-gpus": self.actor_gpus, "--rows-in-flight": self.rows_in_flight}
        given |= {"--rows-per-part": self.rows_per_part, "--to": None if self.to == "folder" else self.to}
        for name, value in given.items():
            if value is not None and not self.ray:
                raise RequestError(f"{name} is for --ray: add it, or leave {name} out")

    def job(
        self,
        values: dict[str, Any],
        fields: dict[str, Any],
        count: int,
        seed: int | None,
        lora_dir: str | None,
        named: tuple[str, ...],
    ) -> Job:
        """Return the job of a batch.

        Args:
            values: of the processor's configuration.
            fields: of requests, where rows have none of their own.
            named: LoRAs that all prompts name.

        Raises:
            Sd2rtError: see :meth:`sd2rt.runtime.ray.job.Job.with_fields`.
        """
        from sd2rt.runtime.ray.config import ProcessorConfig
        from sd2rt.runtime.ray.job import Job

        given = {"concurrency": self.actors, "num_cpus": self.actor_cpus, "num_gpus": self.actor_gpus}
        given |= {"rows_in_flight": self.rows_in_flight, "batch_size": self.rows_per_part}
        values |= {name: value for name, value in given.items() if value is not None}
        return Job.with_fields(ProcessorConfig.of(**values), fields, count, seed, lora_dir, named)

    def draw(
        self,
        rows: Sequence[Row | RequestError],
        job: Job,
        folder: Path,
        tell: Callable[[dict[str, Any] | None], None],
    ) -> Tally:
        """Draw the rows; see :func:`sd2rt.runtime.ray.batch.draw_rows`."""
        from sd2rt.runtime.ray.batch import draw_rows

        return draw_rows(rows, job, folder, self.to, tell, self.ray_address)
