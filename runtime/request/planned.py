"""Requests resolved and planned for one bundle: task, defaults and sampling steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import Task
from sd2rt.engines.bundle.sizes import check_sides
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.engines.interface import Float32Array
from sd2rt.engines.lora.file import Lora
from sd2rt.engines.printable import shown
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK
from sd2rt.runtime.request.fields import Images
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.request.resolve import fill_defaults, task_of
from sd2rt.runtime.request.sampling import plan_of, strength_of
from sd2rt.runtime.samplers.plan import Plan


@dataclass(frozen=True, slots=True)
class PlannedRequest(Generic[Images]):
    """A request resolved and planned from a bundle's manifest."""

    request: Request[Images]
    """The request with its preset's settings and the bundle's defaults filled in."""
    task: Task
    plan: Plan
    build_key: str
    """Build key of the bundle. Other bundles have other defaults and need another plan."""
    image_latents: Float32Array | None = None
    """Latents [C, h, w] to start from, rather than those that the encoder makes of the request's image."""

    @property
    def strength(self) -> float | None:
        """Strength of the late start, above 0 and up to 1; None if sampling starts from pure noise."""
        return strength_of(self.request, self.task)


def plan_requests(
    requests: Sequence[Request[Images]], manifest: Manifest, loras: Sequence[Lora] = ()
) -> list[PlannedRequest[Images]]:
    """Resolve and plan requests; warns of settings that cannot do what they are for.

    Args:
        loras: LoRAs that are loaded beside the bundle.

    Raises:
        RequestError: the bundle does not support a request.
        BundleError: the bundle's own defaults cannot be sampled.
    """
    planned: list[PlannedRequest[Images]] = []
    for request in requests:
        _warn(request, manifest, loras)
        task = task_of(request, manifest)
        # Upscalers refuse a size for another reason.
        if manifest.low_resolution is None:
            check_sides(request.width, request.height, manifest.latents.size_multiple)
        resolved: Request[Any] = fill_defaults(request, task, manifest)
        try:
            plan = plan_of(resolved, task, manifest)
        except RequestError:
            _check_defaults(task, manifest)
            raise
        planned.append(PlannedRequest(resolved, task, plan, manifest.build_key))
    return planned


def _warn(request: Request[Any], manifest: Manifest, loras: Sequence[Lora]) -> None:
    distilled = manifest.variant == "turbo" or manifest.merged_loras or loras
    if request.preset is not None and not distilled:
        warnings.warn(
            f"the preset {request.preset} is for weights distilled to few steps, and {manifest.name} is of kind "
            f"{manifest.variant} without a LoRA: leave the preset out, or load its LoRA",
            stacklevel=4,
        )
    if request.prompt_syntax == "plain" and (tag := NAMED_NETWORK.search(request.prompt or "")) is not None:
        warnings.warn(
            f"the prompt contains {shown(tag[0])}, which plain syntax reads as words: load the LoRA with --lora or "
            "load_lora(), or use a1111 syntax with --lora-dir",
            stacklevel=4,
        )


def each_image(planned: PlannedRequest[Images], seed: int, count: int) -> Iterator[PlannedRequest[Images]]:
    """Yield a planned request for each image of a request of several, whose first image has ``seed``."""
    request = planned.request
    for index in range(count):
        image_seed, variation_seed = request.seeds_of(seed, index)
        fields: dict[str, Any] = {"seed": image_seed, "num_images_per_prompt": 1}
        if variation_seed is not None:
            fields["variation_seed"] = variation_seed
        if request.latents is not None:
            fields["latents"] = request.latents[index : index + 1]
        yield replace(planned, request=request.model_copy(update=fields))


def _check_defaults(task: Task, manifest: Manifest) -> None:
    """Check that a request without options can be planned: if not, the bundle is at fault, not the request.

    Raises:
        BundleError: it cannot.
    """
    try:
        plan_of(fill_defaults(Request(prompt=""), task, manifest), task, manifest)
    except RequestError as error:
        raise BundleError(
            f"{manifest.name} cannot be sampled with its own defaults ({error}): build the bundle again"
        ) from None
