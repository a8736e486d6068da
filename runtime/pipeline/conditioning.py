"""Image conditioning of the denoiser, and the random draws at the start of each image, in diffusers' order."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sd2rt.engines.bundle.model_kinds import ConditionName
from sd2rt.engines.bundle.sizes import check_sides
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.images.mask import extent_note, mask_values
from sd2rt.runtime.images.preparation import ResizeMode
from sd2rt.runtime.images.resample import nearest
from sd2rt.runtime.pipeline.input_images import InputImages
from sd2rt.runtime.request.planned import PlannedRequest
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.rng.select import NormalGenerator
from sd2rt.runtime.rng.slerp import slerp
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.runtime.networks.networks import Networks


_RESIZED: dict[ResizeMode, str] = {"stretch": "resized", "crop": "cropped", "fill": "filled up"}


@dataclass(frozen=True, slots=True)
class Start:
    """Initial arrays of one image."""

    noise: Latents  # [C, h, w]
    image_latents: Latents | None  # [C, h, w]; None if the image starts from noise alone
    extra: Float32Array | None  # [Cx, h, w]; None if the denoiser has no input besides the latents
    kept: Latents | None = None
    """Latents [C, h, w] of the image whose area outside of the mask is kept; None if the denoiser keeps it itself."""


class Conditioning:
    """Input images of one request, prepared once and shared by all images that it generates.

    Every intermediate result is an attribute, computed on first use, so that it can be inspected and compared. The
    arithmetic follows diffusers' pipelines.
    """

    def __init__(self, networks: Networks, planned: PlannedRequest[Any]) -> None:
        self._manifest = manifest = networks.bundle.manifest
        self._networks = networks
        self._request = request = planned.request
        self._image_latents = planned.image_latents
        self.strength = planned.strength
        """Change from the input image, above 0, up to 1; None if the image starts from noise alone."""
        self.width, self.height = size_of(manifest, request)
        """Size of the result, in pixels."""
        self.factor = manifest.latents.vae_factor
        """Pixels per latent, along a side."""
        self.shape = (manifest.latents.channels, *manifest.latents.sides(self.width, self.height))
        """Shape of the latents, [C, h, w]."""
        self._inputs = InputImages(request, self.width, self.height)
        self._warn_if_resized()
        # With only_masked, the mask of the area alone may well be white.
        if request.mask_image is not None and not request.only_masked:
            note = extent_note(self.latent_mask)
            if note is not None:
                warnings.warn(note, stacklevel=2)

    def _warn_if_resized(self) -> None:
        image = self._request.image
        size_requested = self._request.width is not None and self._request.height is not None
        if image is None or size_requested or self.tileable or self._request.only_masked:
            return
        if image.size == (self.width, self.height):
            return
        warnings.warn(
            f"the image is {image.width}x{image.height}: {_RESIZED[self._request.resize_mode]} to "
            f"{self.width}x{self.height}, because sides must be multiples of {self._manifest.latents.size_multiple}",
            stacklevel=2,
        )

    @property
    def keeps(self) -> bool:
        """True if there is a mask and the denoiser has no input for it: the step loop keeps the rest of the image."""
        return self._request.mask_image is not None and not self._manifest.conditions

    @property
    def tileable(self) -> bool:
        """True if tiles of the image can be denoised separately: a low-resolution image shows each one's content."""
        return self._manifest.low_resolution is not None

    def draw(
        self,
        generator: NormalGenerator,
        noise: Latents | None = None,
        variation: NormalGenerator | None = None,
    ) -> Start:
        """Make the random draws of one image, in the order of diffusers' pipelines.

        Args:
            generator: source of all draws but the variation's.
            noise: initial noise [C, h, w] instead of a draw.
            variation: source of a second noise, towards which the initial noise is interpolated by the request's
                ``variation_strength``.
        """
        names = [condition.name for condition in self._manifest.conditions]
        channels = {
            name: CONDITIONS[name].make(self, generator) for name in names if CONDITIONS[name].before_start
        }
        encoded = self._image_latents
        if encoded is None and (self.strength is not None or self.keeps):
            encoded = self.sample(self.image_moments, generator)
        if noise is None:
            noise = generator.randn(self.shape)
        if variation is not None:
            noise = slerp(noise, variation.randn(self.shape), self._request.variation_strength)
        for name in names:
            if name not in channels:
                channels[name] = CONDITIONS[name].make(self, generator)
        extra = np.concatenate([channels[name] for name in names]) if names else None
        if self.keeps and self._request.grid != "a1111":
            # diffusers draws the noise of the masked image's latents for every UNet, also where they are no input.
            generator.randn(self.shape)
        image_latents = None if self.strength is None else encoded
        return Start(noise, image_latents, extra, encoded if self.keeps else None)

    def sample(self, moments: Float32Array, generator: NormalGenerator) -> Latents:
        """Sample latents [C, h, w] from the encoder's moments [2C, h, w], times the scaling factor.

        With AUTOMATIC1111's grid they are the means: it does not draw the encoder's noise from the seed.
        """
        mean, logvar = np.split(moments, 2)
        if self._request.grid == "a1111":
            return np.float32(self._manifest.latents.scaling_factor) * mean
        deviation = np.exp(np.float32(0.5) * logvar)
        draw: Float32Array = mean + deviation * generator.randn(mean.shape)
        return np.float32(self._manifest.latents.scaling_factor) * draw

    def _cached(self, name: str, image: Any, mask: Any, compute: Callable[[], Float32Array]) -> Float32Array:
        """Look up a network's result for this image and mask, which several requests may share, or compute it."""
        if self._request.only_masked:
            mask = self._request.mask_image
        return self._networks.results.get((name, *self._inputs.key), (image, mask), compute)

    @cached_property
    def image(self) -> Float32Array:
        """Initial image [3, H, W] in [-1, 1], at the result's size."""
        from sd2rt.runtime.images.init_image import resized, to_tensor

        return to_tensor(resized(self._inputs.image, self.width, self.height))

    @cached_property
    def image_moments(self) -> Float32Array:
        """Encoder's moments of the image, [2C, h, w]: means, then log variances."""
        return self._cached("image", self._request.image, None, lambda: self._networks.vae.encode(self.image))

    @cached_property
    def mask(self) -> Float32Array:
        """Inpainting mask [1, H, W]: 1 where the image is repainted, 0 where it is kept."""
        return mask_values(self._inputs.mask, self.width, self.height)

    @cached_property
    def latent_mask(self) -> Float32Array:
        """Mask at the latents' size, [1, h, w]."""
        return nearest(self.mask, *self.shape[1:])

    @cached_property
    def masked_image_moments(self) -> Float32Array:
        """Encoder's moments of the image with the repainted area gray, [2C, h, w]."""
        return self._cached(
            "masked image",
            self._request.image,
            self._request.mask_image,
            lambda: self._networks.vae.encode(self.image * (self.mask < 0.5)),
        )

    @cached_property
    def raw_depth(self) -> Float32Array:
        """Depth map of the request, or the depth estimator's for its image, [H', W'], unscaled."""
        image, depth_map = self._request.image, self._request.depth_map
        if depth_map is not None:
            return self._inputs.fitted_depth(np.asarray(depth_map, np.float32))
        return self._cached("depth", image, None, lambda: self._networks.depth(self._inputs.image))

    @cached_property
    def depth(self) -> Float32Array:
        """Depth input of the denoiser, [1, h, w], from -1 (farthest) to 1."""
        from sd2rt.runtime.images.depth_map import depth_condition

        return depth_condition(self.raw_depth, *self.shape[1:])

    @cached_property
    def low_res(self) -> Float32Array:
        """Low-resolution image [3, h, w] in [-1, 1], its edge repeated up to the latents' size."""
        from sd2rt.runtime.images.init_image import to_tensor

        image = to_tensor(self._request.image)
        _, height, width = image.shape
        _, h, w = self.shape
        return np.pad(image, ((0, 0), (0, h - height), (0, w - width)), mode="edge")

    def noised_low_res(self, generator: NormalGenerator) -> Float32Array:
        """Add noise of the request's ``noise_level`` to the low-resolution image, [3, h, w]."""
        low, level = self._manifest.low_resolution, self._request.noise_level
        assert low is not None
        assert level is not None
        signal = NoiseSchedule(low.noise).alphas_cumprod[level]
        noise = generator.randn(self.low_res.shape)
        return np.float32(np.sqrt(signal)) * self.low_res + np.float32(np.sqrt(1 - signal)) * noise

    def finish(self, unit: Float32Array) -> Float32Array:
        """Return a request's result for a generated image [H, W, 3] in [0, 1]: original pixels may be pasted."""
        return self._inputs.finish(unit)


@dataclass(frozen=True, slots=True)
class Channels:
    """Construction of the input channels for one condition of the denoiser."""

    make: Callable[[Conditioning, NormalGenerator], Float32Array]
    before_start: bool = False
    """Draw random numbers for it before those of the initial latents."""


CONDITIONS: dict[ConditionName, Channels] = {
    "mask": Channels(lambda conditioning, generator: conditioning.latent_mask),
    "masked_image": Channels(
        lambda conditioning, generator: conditioning.sample(conditioning.masked_image_moments, generator)
    ),
    "depth": Channels(lambda conditioning, generator: conditioning.depth),
    "low_res": Channels(
        lambda conditioning, generator: conditioning.noised_low_res(generator), before_start=True
    ),
}


def size_of(manifest: Manifest, request: Request) -> tuple[int, int]:
    """Compute width and height, in pixels, of a request's images.

    Raises:
        RequestError: a side is out of range, or a size is requested for upscaling, where the input image sets it.
    """
    image, multiple = request.image, manifest.latents.size_multiple
    if manifest.low_resolution is not None and image is not None:
        factor = manifest.latents.vae_factor
        for name in ("width", "height"):
            if getattr(request, name) is not None:
                raise RequestError(
                    f"{name} cannot be set for upscaling: the result is {factor} times the size of the image"
                )
        return image.width * factor, image.height * factor
    if image is not None and not request.only_masked and (request.width is None or request.height is None):
        from sd2rt.runtime.images.init_image import fitting_size

        width, height = fitting_size(image, multiple)
    else:
        width, height = manifest.native_sizes[0]
    size = (
        width if request.width is None else request.width,
        height if request.height is None else request.height,
    )
    check_sides(*size, multiple)
    return size


def result_size(manifest: Manifest, request: Request) -> tuple[int, int]:
    """Compute width and height, in pixels, of a request's finished images: the whole one if only an area is painted.

    Raises:
        RequestError: as :func:`size_of`.
    """
    size = size_of(manifest, request)
    image: Image | None = request.image
    return image.size if request.only_masked and image is not None else size
