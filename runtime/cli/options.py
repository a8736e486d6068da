"""Options of the commands that make images, in groups; each option is declared here once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.runtime.cli import parsing

if TYPE_CHECKING:
    from sd2rt.engines.lora.file import Lora
    from sd2rt.runtime.prompts.textual_inversion import Embedding


@dataclass(frozen=True, slots=True)
class PromptOptions(OptionGroup):
    """The text of the images, and the files that change how it is read or drawn."""

    panel: ClassVar[str] = "Prompt"

    negative: Annotated[str, typer.Option(help="Negative prompt: what the images should not show.")] = ""
    prompt_syntax: Annotated[
        str,
        typer.Option(
            help="plain; or a1111 for (weights:1.3), AND, BREAK, [edits:by step:0.4] and prompts of any length."
        ),
    ] = "plain"
    clip_skip: Annotated[
        int | None, typer.Option(help="Number of layers to skip at the end of the text encoder.")
    ] = None
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TOKEN=]PATH", help="Textual inversion, used by its token in a prompt; repeatable."
        ),
    ] = None
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .pt and .bin embeddings: tensors only, no code.")
    ] = False
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:SCALE]", help="LoRA to apply, at scale 1 by default; repeatable."),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Fields of a request."""
        return {
            "negative_prompt": self.negative,
            "prompt_syntax": self.prompt_syntax,
            "clip_skip": self.clip_skip,
        }

    def embeddings(self) -> list[Embedding]:
        """Read the textual inversions.

        Raises:
            RequestError: a file is missing, damaged, or a pickle that was not allowed.
        """
        return [parsing.embedding(text, self.allow_pickle) for text in self.embedding or ()]

    def loras(self) -> list[Lora]:
        """Read the LoRAs.

        Raises:
            RequestError: a file is missing or is not a LoRA.
        """
        from sd2rt.engines.lora.file import named_loras

        return named_loras(self.lora or [])


@dataclass(frozen=True, slots=True)
class StepOptions(OptionGroup):
    """Steps, guidance and sampler: the sampling options that every command takes."""

    panel: ClassVar[str] = "Sampling"

    steps: Annotated[int | None, typer.Option(help="Sampler steps; default: the bundle's.")] = None
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE[,SCALE...]",
            help="Guidance scale; 1 or less turns guidance off; default: the bundle's. Several values are "
            "spread evenly over the steps: 9,3 falls from 9 to 3.",
        ),
    ] = None
    sampler: Annotated[
        str | None, typer.Option(help="A name that `sd2rt samplers` lists; default: the checkpoint's.")
    ] = None

    def fields(self) -> dict[str, Any]:
        """Fields of a request."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": parsing.one_or_more("--guidance", self.guidance),
            "sampler": self.sampler,
        }


@dataclass(frozen=True, slots=True)
class SamplingOptions(StepOptions):
    """All options of sampling."""

    preset: Annotated[
        str | None,
        typer.Option(
            help="turbo or lcm: sampler, schedule, steps and guidance for weights distilled to few steps."
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(help="leading, trailing, linspace, karras, exponential, beta, lambdas or ays."),
    ] = None
    sampler_option: Annotated[
        list[str] | None,
        typer.Option("--sampler-option", metavar="NAME=VALUE", help="Such as solver_order=3; repeatable."),
    ] = None
    eta: Annotated[float, typer.Option(help="ddim, tcd: share of fresh noise, 0 to 1.")] = 0.0
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", help="Guide only steps at noise levels (sigmas) in this interval."),
    ] = None
    rescale: Annotated[float, typer.Option(help="Guidance rescale, 0 to 1.")] = 0.0
    zero_snr: Annotated[
        bool | None,
        typer.Option(
            "--zero-snr/--no-zero-snr",
            help="Make the last timestep pure noise; default: the checkpoint's setting.",
            show_default=False,
        ),
    ] = None
    timesteps: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="Explicit timesteps, instead of --steps.")
    ] = None
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...",
            help="Explicit noise levels, instead of --steps; the last one is left in the image.",
        ),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Fields of a request."""
        return StepOptions.fields(self) | {
            "preset": self.preset,
            "schedule": self.schedule,
            "sampler_options": parsing.sampler_options(self.sampler_option or []),
            "eta": self.eta,
            "guidance_interval": parsing.numbers("--guidance-interval", self.guidance_interval, between=":"),
            "guidance_rescale": self.rescale,
            "rescale_betas_zero_snr": self.zero_snr,
            "timesteps": parsing.numbers("--timesteps", self.timesteps),
            "sigmas": parsing.numbers("--sigmas", self.sigmas),
        }


@dataclass(frozen=True, slots=True)
class ImageOptions(OptionGroup):
    """Images that are inputs, and the size of the result."""

    panel: ClassVar[str] = "Image"

    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Size in pixels, multiples of 64; default: the bundle's."),
    ] = None
    image: Annotated[
        str | None, typer.Option(help="A PNG, JPEG or WebP to start from; - reads standard input.")
    ] = None
    strength: Annotated[
        float | None,
        typer.Option(help="How much to change the image: above 0, up to 1; default: the bundle's."),
    ] = None
    mask: Annotated[
        str | None,
        typer.Option(help="inpainting: an image of the same size; white or transparent areas are generated."),
    ] = None
    paste: Annotated[
        bool, typer.Option("--paste", help="inpainting: put the image's own pixels back outside the mask.")
    ] = False
    paste_blur: Annotated[
        float, typer.Option(help="Width in pixels of the blend inside the mask, with --paste.")
    ] = 4.0
    depth: Annotated[
        str | None,
        typer.Option(help="depth: a gray depth map, brighter is nearer; default: estimated from --image."),
    ] = None
    noise_level: Annotated[
        int | None,
        typer.Option(help="upscaling: noise added to the small image; more lets the upscaler invent more."),
    ] = None
    upscale: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE", help="Enlarge each result four times with this bundle of kind x4-upscaler."
        ),
    ] = None
    max_image_pixels: Annotated[
        int | None, typer.Option(help="Refuse larger input images before decoding them.")
    ] = None

    def files(self) -> dict[str, str | None]:
        """Options that read a file, or standard input for ``-``."""
        return {"--image": self.image, "--mask": self.mask, "--depth": self.depth}

    def fields(self) -> dict[str, Any]:
        """Fields of a request."""
        fields: dict[str, Any] = {
            "image": self.image,
            "mask_image": self.mask,
            "depth_map": self.depth,
            "strength": self.strength,
            # With --upscale it is the upscaler's.
            "noise_level": self.noise_level if self.upscale is None else None,
            "paste": self.paste,
            "paste_blur": self.paste_blur,
        }
        if self.max_image_pixels is not None:
            fields["max_image_pixels"] = self.max_image_pixels
        if self.size is not None:
            fields["width"], fields["height"] = parsing.size(self.size)
        return fields


@dataclass(frozen=True, slots=True)
class SeedOptions(OptionGroup):
    """Random numbers, and the number of images that they are drawn for."""

    panel: ClassVar[str] = "Seeds"

    seed: Annotated[
        int | None, typer.Option(help="Seed of the first image; image i uses seed + i. Default: random.")
    ] = None
    count: Annotated[int, typer.Option(help="Images per prompt.")] = 1
    variation: Annotated[
        str | None,
        typer.Option(
            metavar="SEED:STRENGTH",
            help="Move the noise towards another seed's, by a strength of 0 to 1; image i moves towards SEED + i.",
        ),
    ] = None
    rng: Annotated[
        str,
        typer.Option(
            help="Random number generator: cpu or cuda for torch's on that device; cuda:N for a GPU with N "
            "multiprocessors."
        ),
    ] = "cpu"

    def fields(self) -> dict[str, Any]:
        """Fields of a request, but for the seed."""
        fields: dict[str, Any] = {"rng": self.rng}
        if self.variation is not None:
            fields["variation_seed"], fields["variation_strength"] = parsing.variation(self.variation)
        return fields


@dataclass(frozen=True, slots=True)
class DeviceOptions(OptionGroup):
    """Hardware and software that the networks run on."""

    panel: ClassVar[str] = "Device"

    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu"
    backend: Annotated[
        BackendName,
        typer.Option(
            help="Inference engine; auto takes the bundle's TensorRT engines if they fit the GPU, else ONNX Runtime."
        ),
    ] = "auto"
    precision: Annotated[
        ComputePrecision | None,
        typer.Option(
            help="bf16: multiply in bfloat16 on CPUs that support it (OpenVINO); default: the bundle's precision.",
            show_default=False,
        ),
    ] = None
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: one per core.")] = None
    allow_cpu_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-cpu-fallback",
            help="On a GPU, warn about operators that ONNX Runtime would run on the CPU, instead of refusing them.",
        ),
    ] = False

    def opening(self) -> dict[str, Any]:
        """Arguments of :meth:`sd2rt.Pipeline.open`."""
        return {
            "device": self.device,
            "backend": self.backend,
            "precision": self.precision,
            "threads": self.threads,
            "allow_cpu_fallback": self.allow_cpu_fallback,
        }


@dataclass(frozen=True, slots=True)
class TiledDeviceOptions(DeviceOptions):
    """The same for commands that make images of any size."""

    tile: Annotated[
        int | None,
        typer.Option(help="Longest side of latents that are encoded, decoded or upscaled in one piece."),
    ] = None


@dataclass(frozen=True, slots=True)
class OutputOptions(OptionGroup):
    """Files to write, and lines to print."""

    panel: ClassVar[str] = "Output"

    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file, or a folder for files named by seed.")
    ] = Path(".")
    save_depth: Annotated[
        Path | None, typer.Option(help="depth: also write the depth map, as a 16-bit gray PNG.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line for each image.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False
