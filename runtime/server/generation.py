"""Requests for images, their events and facts about models, as they pass between front and worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from sd2rt.engines.bundle.sizes import LARGEST_SIDE, SIZE_MULTIPLE, SMALLEST_SIDE
from sd2rt.runtime.images.preparation import Enlargement, Preparation

OutputFormat = Literal["png", "jpeg", "webp"]
ImageRole = Literal["image", "mask", "depth_map"]
MAX_PROMPT = 32_000
"""Characters of a prompt, as in OpenAI's API: every 75 tokens of AUTOMATIC1111's syntax are another call of the text
encoder."""
PriorityName = Literal["interactive", "normal", "batch"]
LoraSet = tuple[tuple[str, float] | tuple[str, float, float], ...]
"""LoRAs by name, with their scale, and the text encoder's if it differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request for ``count`` images of one prompt."""

    request_id: str
    model: str
    """Name of a bundle that is served."""
    fields: dict[str, Any]
    """JSON values: keyword arguments of :class:`~sd2rt.runtime.request.request.Request` other than images, arrays
    and ``num_images_per_prompt``."""
    images: dict[ImageRole, bytes] = field(default_factory=dict)
    """Encoded PNG, JPEG or WebP files. Only the worker decodes them."""
    count: int = 1
    output_format: OutputFormat = "png"
    compression: int | None = None
    """As in OpenAI's API, from 0 to 100: quality of JPEG and WebP (default 100), and nothing for PNG."""
    partial_images: int = 0
    """Decoded images on the way, 0 to 3, of a single image."""
    previews: bool = False
    """Send a small picture with each step, a PNG with one pixel a latent, and the depth map if there is one."""
    every_step: bool = True
    """Send an event for each step; otherwise only now and then, which leaves the device more of the processor."""
    priority: PriorityName = "normal"
    key: str | None = None
    """The caller, for fairness between callers; never logged."""
    deadline_ms: int | None = None
    """Time from the arrival within which the images should be finished."""
    loras: LoraSet = ()
    """Names that the operator gave, and scales."""
    preparation: Preparation | None = None
    """Prepare the image as AUTOMATIC1111 does, and paste the result back."""
    enlargement: Enlargement | None = None
    """Size of an upscaler's result; None for its own."""
    infotexts: bool = False
    """Add the images' settings to the facts, as AUTOMATIC1111 writes them."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request's first step is made."""

    queue_ms: float
    """Time from the request's arrival in the worker to its first step, without preparation."""


@dataclass(frozen=True, slots=True)
class DepthMap:
    """The depth map of a depth-to-image request, if previews were asked for."""

    data: bytes
    """A gray PNG of 16 bits; larger values are nearer."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """Steps were made. Steps are left out if the consumer is slower than they are."""

    step: int
    """Steps made so far, over all images of the request."""
    steps: int
    """Steps of the whole request."""
    preview: bytes | None = None
    """A PNG with one pixel a latent, if previews were asked for."""


@dataclass(frozen=True, slots=True)
class Partial:
    """A decoded image on the way, in the request's format."""

    index: int
    """Counts partial images from 0."""
    data: bytes


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """An encoded image."""

    data: bytes
    seed: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Completed:
    """All images of a request. It is the last event."""

    images: list[GeneratedImage]
    facts: dict[str, Any]
    """``sampler``, ``steps``, ``width``, ``height``, ``task``, ``queue_ms``, ``prompt_tokens``, ``warnings`` (list of
    texts), and ``stages``: seconds by stage (``prepare``, ``step``, ``decode``, ``finish``). Also ``infotexts``, one
    an image, if the request asks for them."""


Event: TypeAlias = DepthMap | Started | Stepped | Partial | Completed


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """Defaults of one of a model's tasks."""

    steps: int
    guidance_scale: float
    strength: float | None = None
    noise_level: int | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A bundle that is served."""

    id: str
    kind: str
    """``base``, ``v``, ``turbo``, ``inpainting``, ``depth`` or ``upscaler``."""
    tasks: dict[str, TaskInfo]
    width: int
    """Default width in pixels; with an image to start from, the image's size is the default."""
    height: int
    precision: str
    identity: str
    """SHA-256 of the bundle's manifest."""
    license: str
    created: int
    """Unix time at which the bundle was written."""
    memory_bytes: int
    """Memory that it needs when loaded: its weights, and an estimate for one image."""
    size_multiple: int = SIZE_MULTIPLE
    smallest_side: int = SMALLEST_SIDE
    largest_side: int = LARGEST_SIDE
    upscale_factor: int | None = None
    """For upscalers: pixels of the result per pixel of the image, along a side. Sizes cannot be requested."""
    sampler: str = ""
    """Default sampler."""
    text_layers: int = 1
    """Layers of the text encoder: ``clip_skip`` is less."""
    loras: tuple[str, ...] = ()
    """Names that a request may use."""
    embeddings: tuple[tuple[str, int, int], ...] = ()
    """Token, number of vectors and their length of each textual inversion."""
    loaded: bool = False

    def complete(self, fields: dict[str, Any], images: Mapping[ImageRole, bytes], max_steps: int) -> None:
        """Add to a request's fields what a server decides where they leave it out.

        Args:
            fields: keyword arguments of a request of the runtime's.
            images: those that came with it.
            max_steps: that the operator allows; a bundle's default may be more.
        """
        if "num_inference_steps" not in fields and "preset" not in fields:
            most = max(task.steps for task in self.tasks.values())
            if most > max_steps:
                fields["num_inference_steps"] = max_steps
        if "mask" in images and "inpainting" in self.tasks:
            # As in OpenAI's API, everything outside of the mask stays as it is.
            fields.setdefault("paste", True)
