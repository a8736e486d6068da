"""The autoencoders: factor 8 for images, factor 4 for the upscaler."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F  # noqa: N812

from benchmarks.demo import world

_KL = 2e-5
"""Weight of the KL divergence per latent value: enough to make latents robust to some noise."""


def pixels(scenes: list[world.Scene]) -> torch.Tensor:
    """Images as autoencoder input: [N, 3, 128, 128] float32, -1 to 1."""
    stack = np.stack([world.picture(scene) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


class AutoencoderLoss:
    """Absolute and squared error of pixels, absolute error of their differences, and a small KL term.

    Coloured pixels count up to four times, since most of an image is grey ground. Three of four batches are crops
    around things, which cost a quarter.
    """

    def __init__(self, vae: TrainableVae, batch: int, crop: int) -> None:
        self._vae, self._batch, self._crop = vae, batch, crop

    def __call__(self, generator: np.random.Generator, noise: torch.Generator) -> Mapping[str, torch.Tensor]:
        whole = generator.random() < 0.25
        scenes = [world.draw_scene(generator) for _ in range(self._batch // 4 if whole else self._batch)]
        x = pixels(scenes)
        if not whole:
            x = torch.stack(
                [self._about_thing(one, of, generator) for one, of in zip(x, scenes, strict=True)]
            )
        mean, logvar = self._vae.encode_moments(x)
        z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=noise)
        y = self._vae.decode_latents(z)
        counts = 1 + 1.5 * (x.amax(1, keepdim=True) - x.amin(1, keepdim=True))
        error = (y - x).abs()
        edges = _differences(y - x)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = (counts * error).mean() + (counts * error.square()).mean() + 0.5 * edges + _KL * kl
        return {"loss": loss, "l1": error.mean(), "mse": F.mse_loss(y, x), "kl": kl}

    def _about_thing(self, x: torch.Tensor, one: world.Scene, generator: np.random.Generator) -> torch.Tensor:
        thing = one.things[int(generator.integers(len(one.things)))]
        side = self._crop
        left, top = (
            int(np.clip(value - side / 2 + generator.uniform(-20, 20), 0, world.SIDE - side))
            for value in thing.center
        )
        return x[:, top : top + side, left : left + side]


def _differences(error: torch.Tensor) -> torch.Tensor:
    return (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()


class TrainableVae(torch.nn.Module):
    """diffusers' autoencoder, reduced to the two calls used in training.

    Not compiled: torch.compile of PyTorch 2.13 loses the gradient at the first upsampling on a CPU, so the encoder
    would learn nothing.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        # Start with a small latent variance: with deviation 1 the decoder never finds the signal.
        with torch.no_grad():
            vae.quant_conv.bias[vae.quant_conv.out_channels // 2 :] = -6.0

    def encode_moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, logvar = self.vae.quant_conv(self.vae.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode_latents(self, z: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.vae.decoder(self.vae.post_quant_conv(z))
        return image


@torch.no_grad()
def whiten(vae: AutoencoderKL, scaling_factor: float) -> None:
    """Give each channel of the scaled latents mean 0 and deviation 1 without changing decoded images.

    The scale is folded into the two 1x1 convolutions around the latents.
    """
    generator = np.random.default_rng(77)
    moments = torch.cat(
        [
            vae.quant_conv(vae.encoder(pixels([world.draw_scene(generator) for _ in range(16)])))
            for _ in range(32)
        ]
    )
    channels = moments.shape[1] // 2
    latents = moments[:, :channels].transpose(0, 1).flatten(1).double()
    mean = latents.mean(1)
    deviation = latents.std(1)
    scale = 1 / (deviation * scaling_factor)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] *= scale[:, None, None, None].float()
    quant.bias[:channels] = ((quant.bias[:channels].double() - mean) * scale).float()
    quant.bias[channels:] += 2 * scale.log().float()
    post.bias += (post.weight[:, :, 0, 0].double() @ mean).float()
    post.weight /= scale[None, :, None, None].float()
