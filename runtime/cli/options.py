"""Options of the commands that make images, in groups; each option is declared here once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sd2rt.engines.bundle.cache import complete_bundle
from sd2rt.engines.errors import RequestError
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.runtime.cli import parsing
from sd2rt.runtime.cli.shell import names
from sd2rt.runtime.images.preparation import ResizeMode
from sd2rt.runtime.rows import option_text

if TYPE_CHECKING:
    from sd2rt.engines.lora.file import Lora
    from sd2rt.runtime.prompts.textual_inversion import Embedding
    from sd2rt.runtime.rows.lora_tags import LoraFolder


@dataclass(frozen=True, slots=True)
class PromptOptions(OptionGroup):
    """The text of the images, and the files that change how it is read or drawn."""

    panel: ClassVar[str] = "Prompt"

    negative: Annotated[
        str,
        typer.Option(
            "--negative", "--negative-prompt", help="Negative prompt: what the images should not show."
        ),
    ] = ""
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
        bool,
        typer.Option("--allow-pickle", help="Read .pt and .bin embeddings and LoRAs: tensors only, no code."),
    ] = False
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE[:TEXT]]",
            help="LoRA to apply, at scale 1 by default; a second scale is the text encoder's; repeatable.",
        ),
    ] = None
    lora_dir: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="a1111 syntax: load the LoRAs that prompts name, as in <lora:name:0.8>, from here.",
        ),
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
        return [option_text.embedding(text, self.allow_pickle) for text in self.embedding or ()]

    def lora_folder(self) -> LoraFolder | None:
        """Return the folder of LoRAs that prompts may name.

        Raises:
            RequestError: it is not a folder.
        """
        from sd2rt.runtime.rows.lora_tags import LoraFolder

        return None if self.lora_dir is None else LoraFolder(self.lora_dir)

    def loras(self, named: Sequence[str] = ()) -> list[Lora]:
        """Read the LoRAs of ``--lora``, and those that prompts name.

        Raises:
            RequestError: a file is missing or is not a LoRA.
        """
        from sd2rt.engines.lora.file import named_loras

        return named_loras([*(self.lora or ()), *named], allow_pickle=self.allow_pickle)


@dataclass(frozen=True, slots=True)
class StepOptions(OptionGroup):
    """Steps, guidance and sampler: the sampling options that every command takes."""

    panel: ClassVar[str] = "Sampling"

    steps: Annotated[
        int | None,
        typer.Option("--steps", "--num-inference-steps", help="Sampler steps; default: the bundle's."),
    ] = None
    guidance: Annotated[
        str | None,
        typer.Option(
            "--guidance",
            "--cfg",
            "--cfg-scale",
            "--guidance-scale",
            metavar="SCALE[,SCALE...]",
            help="Guidance scale; 1 or less turns guidance off; default: the bundle's. Several values are "
            "spread evenly over the steps: 9,3 falls from 9 to 3.",
        ),
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            "--sampler-name",
            help="A name that `sd2rt samplers` lists, or AUTOMATIC1111's; default: the checkpoint's.",
            autocompletion=names.samplers,
        ),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Fields of a request."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": parsing.one_or_more("--guidance", self.guidance),
            **option_text.sampler_and_schedule(self.sampler, None),
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
        typer.Option(
            "--schedule",
            "--schedule-type",
            help="leading, trailing, linspace, karras, exponential, beta, lambdas or ays.",
            autocompletion=names.schedules,
        ),
    ] = None
    grid: Annotated[
        str,
        typer.Option(
            help="diffusers; or a1111 for AUTOMATIC1111's noise levels and timesteps, with its schedule types: "
            "automatic, uniform, karras, exponential, polyexponential, sgm-uniform, kl-optimal, ays, simple, normal, "
            "ddim or beta."
        ),
    ] = "diffusers"
    sampler_option: Annotated[
        list[str] | None,
        typer.Option("--sampler-option", metavar="NAME=VALUE", help="Such as solver_order=3; repeatable."),
    ] = None
    eta: Annotated[float, typer.Option(help="ddim, tcd, dpm-fast: share of fresh noise, 0 to 1.")] = 0.0
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", help="Guide only steps at noise levels (sigmas) in this interval."),
    ] = None
    rescale: Annotated[
        float, typer.Option("--rescale", "--guidance-rescale", help="Guidance rescale, 0 to 1.")
    ] = 0.0
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
            **option_text.sampler_and_schedule(self.sampler, self.schedule, self.grid),
            "preset": self.preset,
            "grid": self.grid,
            "sampler_options": option_text.sampler_options(self.sampler_option or []),
            "eta": self.eta,
            "guidance_interval": option_text.numbers(
                "--guidance-interval", self.guidance_interval, between=":"
            ),
            "guidance_rescale": self.rescale,
            "rescale_betas_zero_snr": self.zero_snr,
            "timesteps": option_text.numbers("--timesteps", self.timesteps),
            "sigmas": option_text.numbers("--sigmas", self.sigmas),
        }


@dataclass(frozen=True, slots=True)
class ImageOptions(OptionGroup):
    """Images that are inputs, and the size of the result."""

    panel: ClassVar[str] = "Image"

    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Size in pixels, multiples of 8; default: the bundle's."),
    ] = None
    width: Annotated[
        int | None, typer.Option("--width", "-W", help="Width in pixels, instead of --size.")
    ] = None
    height: Annotated[
        int | None, typer.Option("--height", "-H", help="Height in pixels, instead of --size.")
    ] = None
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            "--init-image",
            "--init-img",
            help="A PNG, JPEG, WebP, AVIF, BMP or TIFF to start from; - reads standard input.",
        ),
    ] = None
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            "--denoising-strength",
            "--denoise",
            help="How much to change the image: above 0, up to 1; default: the bundle's.",
        ),
    ] = None
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            "--mask-image",
            help="an image of the same size as --image; white or transparent areas are generated.",
        ),
    ] = None
    paste: Annotated[
        bool, typer.Option("--paste", help="With a mask: put the image's own pixels back outside the mask.")
    ] = False
    paste_blur: Annotated[
        float, typer.Option(help="Width in pixels of the blend inside the mask, with --paste.")
    ] = 4.0
    only_masked: Annotated[
        bool,
        typer.Option(
            "--only-masked",
            help="With a mask: paint its area alone, at the image's --size, and paste it into the whole image.",
        ),
    ] = False
    mask_padding: Annotated[
        int, typer.Option(help="Pixels of the image around the masked area, with --only-masked.")
    ] = 32
    resize_mode: Annotated[
        ResizeMode,
        typer.Option(
            help="An image of another aspect ratio is stretched, cropped, or filled up at its edges."
        ),
    ] = "stretch"
    depth: Annotated[
        str | None,
        typer.Option(
            "--depth",
            "--depth-map",
            help="depth: a gray depth map, brighter is nearer; default: estimated from --image.",
        ),
    ] = None
    noise_level: Annotated[
        int | None,
        typer.Option(help="upscaling: noise added to the small image; more lets the upscaler invent more."),
    ] = None
    upscale: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE",
            help="Enlarge each result four times with this bundle of kind x4-upscaler.",
            autocompletion=complete_bundle,
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
            "only_masked": self.only_masked,
            "mask_padding": self.mask_padding,
            "resize_mode": self.resize_mode,
        }
        if self.max_image_pixels is not None:
            fields["max_image_pixels"] = self.max_image_pixels
        if self.size is not None:
            if self.width is not None or self.height is not None:
                raise RequestError("--size is given with --width or --height: use either")
            fields["width"], fields["height"] = option_text.size(self.size)
        fields |= {name: side for name in ("width", "height") if (side := getattr(self, name)) is not None}
        return fields


@dataclass(frozen=True, slots=True)
class SeedOptions(OptionGroup):
    """Random numbers, and the number of images that they are drawn for."""

    panel: ClassVar[str] = "Seeds"

    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first image; image i uses seed + i. Default, and -1: random."),
    ] = None
    count: Annotated[
        int,
        typer.Option("--count", "--num-images", "--num-images-per-prompt", help="Images per prompt."),
    ] = 1
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
            fields["variation_seed"], fields["variation_strength"] = option_text.variation(self.variation)
        return fields
