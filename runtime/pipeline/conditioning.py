"""A request's pictures as the denoiser is shown them, and the random draws that an image begins with, in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sd2rt.engines.bundle.model_kinds import ConditionName
from sd2rt.engines.bundle.sizes import check_side
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.request.planned import PlannedRequest
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.rng.select import NormalGenerator
from sd2rt.runtime.rng.slerp import slerp
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.runtime.pipeline.networks import Networks


@dataclass(frozen=True, slots=True)
class Start:
    """What one image begins with."""

    noise: Latents  # [C, h, w]
    image_latents: Latents | None  # [C, h, w]; None where it begins with noise alone
    extra: Float32Array | None  # [Cx, h, w]; None where the denoiser sees nothing beside the latents


class Conditioning:
    """The pictures of one request, prepared once, and drawn from for each of its images.

    Everything that is computed on the way is an attribute, computed when first asked for, so that it can be
    compared and shown. The arithmetic is that of diffusers' pipelines.
    """

    def __init__(self, networks: Networks, planned: PlannedRequest[Any]) -> None:
        self._manifest = manifest = networks.bundle.manifest
        self._networks = networks
        self._request = request = planned.request
        self.strength = planned.strength
        """How much the sampler changes the image, above 0 to 1; None if it starts from noise alone."""
        self.width, self.height = size_of(manifest, request)
        """Of the result, in pixels."""
        factor = manifest.latents.vae_factor
        # A low-resolution image of any size is padded to what the denoiser's strides divide.
        h, w = (-(-side // factor // 8) * 8 for side in (self.height, self.width))
        self.shape = (manifest.latents.channels, h, w)
        """Of the latents, [C, h, w]."""
        self._note()

    def _note(self) -> None:
        image = self._request.image
        asked = self._request.width is not None and self._request.height is not None
        if image is None or asked or self.tileable or image.size == (self.width, self.height):
            return
        warnings.warn(
            f"the image is {image.width}x{image.height}: it was made {self.width}x{self.height}, sides are "
            "multiples of 64",
            stacklevel=2,
        )

    @property
    def tileable(self) -> bool:
        """Whether tiles of the image can be made apart: a low-resolution image says what belongs in each."""
        return self._manifest.low_resolution is not None

    def draw(
        self,
        generator: NormalGenerator,
        noise: Latents | None = None,
        variation: NormalGenerator | None = None,
    ) -> Start:
        """Make the draws of one image, in the order of diffusers' pipelines; ``noise`` stands in for its own.

        Towards what ``variation`` draws first the noise is moved by the request's strength of variation; all
        other draws are ``generator``'s.
        """
        names = [condition.name for condition in self._manifest.conditions]
        shown = {
            name: CONDITIONS[name].make(self, generator) for name in names if CONDITIONS[name].before_start
        }
        image_latents = None if self.strength is None else self.sampled(self.image_moments, generator)
        if noise is None:
            noise = generator.randn(self.shape)
        if variation is not None:
            noise = slerp(noise, variation.randn(self.shape), self._request.variation_strength)
        for name in names:
            if name not in shown:
                shown[name] = CONDITIONS[name].make(self, generator)
        extra = np.concatenate([shown[name] for name in names]) if names else None
        return Start(noise, image_latents, extra)

    def sampled(self, moments: Float32Array, generator: NormalGenerator) -> Latents:
        """A draw from what the encoder says of an image, in the sampler's scale."""
        mean, logvar = np.split(moments, 2)
        deviation = np.exp(np.float32(0.5) * logvar)
        draw: Float32Array = mean + deviation * generator.randn(mean.shape)
        return np.float32(self._manifest.latents.scaling_factor) * draw

    def _remembered(self, what: str, image: Any, mask: Any, make: Callable[[], Float32Array]) -> Float32Array:
        """What a network makes of a picture that other requests bring too, made once."""
        return self._networks.recent.get((what, self.width, self.height), (image, mask), make)

    @cached_property
    def image(self) -> Float32Array:
        """The image [3, H, W] in [-1, 1], at the result's size."""
        from sd2rt.runtime.images.init_image import resized, to_tensor

        return to_tensor(resized(self._request.image, self.width, self.height))

    @cached_property
    def image_moments(self) -> Float32Array:
        """What the encoder says of the image, [2C, h, w]."""
        return self._remembered(
            "image", self._request.image, None, lambda: self._networks.vae.encode(self.image)
        )

    @cached_property
    def mask(self) -> Float32Array:
        """1 where the image is made anew, 0 where it stays, [1, H, W]."""
        from sd2rt.runtime.images.mask import mask_values

        return mask_values(self._request.mask_image, self.width, self.height)

    @cached_property
    def latent_mask(self) -> Float32Array:
        """The mask at the latents' size, [1, h, w]."""
        from sd2rt.runtime.images.resample import nearest

        return nearest(self.mask, *self.shape[1:])

    @cached_property
    def masked_image_moments(self) -> Float32Array:
        """What the encoder says of the image with gray in the place of what is made anew, [2C, h, w]."""
        return self._remembered(
            "masked image",
            self._request.image,
            self._request.mask_image,
            lambda: self._networks.vae.encode(self.image * (self.mask < 0.5)),
        )

    @cached_property
    def raw_depth(self) -> Float32Array:
        """The depth map that was given or that the depth estimator sees in the image, [H', W'], unscaled."""
        image, given = self._request.image, self._request.depth_map
        if given is not None:
            return np.asarray(given, np.float32)
        return self._remembered("depth", image, None, lambda: self._networks.depth(image))

    @cached_property
    def depth(self) -> Float32Array:
        """The depth as the denoiser is shown it: from -1, farthest, to 1, [1, h, w]."""
        from sd2rt.runtime.images.depth_map import depth_condition

        return depth_condition(self.raw_depth, *self.shape[1:])

    @cached_property
    def low_res(self) -> Float32Array:
        """The low-resolution image [3, h, w] in [-1, 1], its edge repeated up to the latents' size."""
        from sd2rt.runtime.images.init_image import to_tensor

        image = to_tensor(self._request.image)
        _, height, width = image.shape
        _, h, w = self.shape
        return np.pad(image, ((0, 0), (0, h - height), (0, w - width)), mode="edge")

    def noised_low_res(self, generator: NormalGenerator) -> Float32Array:
        """The low-resolution image with the request's level of noise, [3, h, w]."""
        low, level = self._manifest.low_resolution, self._request.noise_level
        assert low is not None
        assert level is not None
        kept = NoiseSchedule(low.noise).alphas_cumprod[level]
        noise = generator.randn(self.low_res.shape)
        return np.float32(np.sqrt(kept)) * self.low_res + np.float32(np.sqrt(1 - kept)) * noise

    def pasted(self, unit: Float32Array) -> Float32Array:
        """An image [H, W, 3] in [0, 1], with the request's own pixels where it wants them back."""
        if not self._request.paste:
            return unit
        from sd2rt.runtime.images.init_image import resized
        from sd2rt.runtime.images.paste import paste

        own = resized(self._request.image, self.width, self.height)
        original = np.asarray(own, np.float32) / np.float32(255)
        return paste(original, unit, self.mask, self._request.paste_blur)


@dataclass(frozen=True, slots=True)
class Channels:
    """How one of the denoiser's conditions is made."""

    make: Callable[[Conditioning, NormalGenerator], Float32Array]
    before_start: bool = False
    """Its random draws come before those of the sampler's start."""


CONDITIONS: dict[ConditionName, Channels] = {
    "mask": Channels(lambda pictures, generator: pictures.latent_mask),
    "masked_image": Channels(
        lambda pictures, generator: pictures.sampled(pictures.masked_image_moments, generator)
    ),
    "depth": Channels(lambda pictures, generator: pictures.depth),
    "low_res": Channels(lambda pictures, generator: pictures.noised_low_res(generator), before_start=True),
}


def size_of(manifest: Manifest, request: Request) -> tuple[int, int]:
    """Width and height in pixels of a request's images.

    Raises:
        RequestError: a side is out of range, or one was asked for where the image alone decides.
    """
    image = request.image
    if manifest.low_resolution is not None and image is not None:
        times = manifest.latents.vae_factor
        for name in ("width", "height"):
            if getattr(request, name) is not None:
                raise RequestError(
                    f"a {name} is given, and an upscaled image has {times} times its own: leave the size out"
                )
        return image.width * times, image.height * times
    if image is not None and (request.width is None or request.height is None):
        from sd2rt.runtime.images.init_image import fitting_size

        width, height = fitting_size(image)
    else:
        width, height = manifest.native_sizes[0]
    size = (
        width if request.width is None else request.width,
        height if request.height is None else request.height,
    )
    for name, side in zip(("width", "height"), size, strict=True):
        check_side(name, side)
    return size
