"""Options of `sd2rt serve`, in groups. Their defaults are those of the server's configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import typer

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.runtime.cli.output_options import SafetyCheck
from sd2rt.runtime.cli.provenance.options import Certificate, NoMetadata, PrivateKey, WatermarkName


@dataclass(frozen=True, slots=True)
class ConfigOptions(OptionGroup):
    """Base of the groups: a field is a setting of the same name, and None if it was not given."""

    def given(self) -> dict[str, Any]:
        """Return the settings that were given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # A flag that was not given leaves the choice to the environment and the file; a port of 0 is a choice.
        return {name: value for name, value in values.items() if value is not None and value is not False}


@dataclass(frozen=True, slots=True)
class ListenOptions(ConfigOptions):
    """Addresses, and who may use them."""

    panel: ClassVar[str] = "Listening"

    host: Annotated[
        str | None,
        typer.Option(help="Address; others than this machine's own need a key. Default: 127.0.0.1."),
    ] = None
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. Default: 8000.")] = None
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics here, without a key, and not on --port.")
    ] = None
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A key that clients may use; repeatable. Other users of this machine can see it.",
        ),
    ] = None
    api_key_file: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A file of keys, one a line; repeatable.")
    ] = None
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Serve everybody, also at addresses that others can reach.")
    ] = False


@dataclass(frozen=True, slots=True)
class WorkOptions(ConfigOptions):
    """Devices, and the bundles on them."""

    panel: ClassVar[str] = "Device"

    device: Annotated[
        list[str] | None,
        typer.Option(help="cpu, cuda or cuda:N; repeatable, each has a worker. Default: cpu."),
    ] = None
    backend: Annotated[
        BackendName | None, typer.Option(help="Inference engine, as for sd2rt run.", show_default=False)
    ] = None
    precision: Annotated[
        ComputePrecision | None, typer.Option(help="As for sd2rt run.", show_default=False)
    ] = None
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker.")] = None
    allow_cpu_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-cpu-fallback", help="On a GPU, let ONNX Runtime use the CPU for some operators."
        ),
    ] = False
    tile: Annotated[int | None, typer.Option(help="Longest side of latents in one piece.")] = None
    max_batch: Annotated[
        str | None,
        typer.Option(metavar="N", help="Images in a denoiser call; default: auto, which measures at start."),
    ] = None
    keep: Annotated[
        int | None, typer.Option(help="Bundles loaded at once; others load at first use. Default: all.")
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A LoRA that requests may choose by name; repeatable."),
    ] = None
    lora_sets: Annotated[
        int | None,
        typer.Option(help="Sets of LoRAs loaded at once; each takes a bundle's memory. Default: 2."),
    ] = None
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN=FILE", help="Textual inversion, used by its token; repeatable."),
    ] = None

    def given(self) -> dict[str, Any]:
        """Return the settings that were given, files by their names.

        Raises:
            RequestError: one is no ``NAME=FILE`` pair, or two have one name.
        """
        from sd2rt.runtime.server.http.config import NAMED_FILES, named_files

        values = ConfigOptions.given(self)
        return values | {name: named_files(values[name]) for name in NAMED_FILES if name in values}


@dataclass(frozen=True, slots=True)
class LimitOptions(ConfigOptions):
    """Limits of requests."""

    panel: ClassVar[str] = "Limits"

    max_queue: Annotated[
        int | None, typer.Option(help="Unfinished images on a device; others get 429. Default: 64.")
    ] = None
    max_images: Annotated[int | None, typer.Option(help="Images of a request. Default: 10.")] = None
    max_steps: Annotated[int | None, typer.Option(help="Steps of a request. Default: 150.")] = None
    max_side: Annotated[
        int | None,
        typer.Option(help="Pixels of an image's side; twice as many for upscalers. Default: 1024."),
    ] = None
    max_image_pixels: Annotated[int | None, typer.Option(help="Pixels of an uploaded image.")] = None
    max_body_mb: Annotated[int | None, typer.Option(help="MiB of a request's body. Default: 32.")] = None
    max_bodies_mb: Annotated[int | None, typer.Option(help="MiB of all bodies at once. Default: 256.")] = None
    max_connections: Annotated[int | None, typer.Option(help="Connections at once. Default: 1000.")] = None
    rate_limit: Annotated[float | None, typer.Option(help="Requests a minute of each caller.")] = None
    header_timeout: Annotated[
        float | None, typer.Option(help="Seconds for a request's headers. Default: 10.")
    ] = None
    body_timeout: Annotated[float | None, typer.Option(help="Seconds for its body. Default: 60.")] = None
    write_timeout: Annotated[
        float | None, typer.Option(help="Seconds in which a client must read on. Default: 60.")
    ] = None
    keep_alive: Annotated[
        float | None, typer.Option(help="Seconds that an idle connection stays open. Default: 75.")
    ] = None
    shutdown_timeout: Annotated[
        float | None, typer.Option(help="Seconds for open requests to end after SIGTERM. Default: 120.")
    ] = None
    job_minutes: Annotated[
        float | None, typer.Option(help="Minutes that ended jobs are kept. Default: 60.")
    ] = None
    job_mb: Annotated[int | None, typer.Option(help="MiB of their images. Default: 64.")] = None


@dataclass(frozen=True, slots=True)
class MarkOptions(ConfigOptions):
    """Marks of the images that are sent."""

    panel: ClassVar[str] = "Provenance"

    no_metadata: NoMetadata = False
    watermark: Annotated[
        WatermarkName | None,
        typer.Option(
            help="sdv2: the reference Stable Diffusion 2's invisible watermark; smaller images than 256x256 are "
            "refused. Default: none.",
            show_default=False,
        ),
    ] = None
    c2pa_cert: Certificate = None
    c2pa_key: PrivateKey = None


@dataclass(frozen=True, slots=True)
class LogOptions(ConfigOptions):
    """Logs."""

    panel: ClassVar[str] = "Output"

    safety: SafetyCheck = None
    log_format: Annotated[
        str | None, typer.Option(help="json or text; default: text on a terminal, else json.")
    ] = None
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. Default: info.")] = (
        None
    )
