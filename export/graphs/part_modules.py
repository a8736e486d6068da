"""PyTorch modules that are exported as a bundle's parts, one call each.

Shapes: B samples, R network evaluations (rows), P prompts of a sample, K + 1 state slots, C latent channels, Cx
conditioning channels, h x w latent size, L tokens, D text width.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import CLIPTextModel

from sd2rt.export.graphs.upsampling import take_any_side


class TextEncoder(nn.Module):
    """Map token embeddings [B, 77, D] to a layer's output after the final norm [B, 77, D].

    The last ``skip`` layers are skipped, for all samples of a call; ``skip`` is less than the number of layers. The
    embedding look-up stays outside, so that the graph holds no vocabulary.
    """

    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        # Before transformers 5.5 the layers were one level down, under text_model.
        text_model = getattr(model, "text_model", model)
        self.position_embedding = text_model.embeddings.position_embedding
        self.encoder = text_model.encoder
        self.final_layer_norm = text_model.final_layer_norm

    def forward(self, embeddings: Tensor, skip: Tensor) -> Tensor:
        hidden = embeddings + self.position_embedding.weight
        outputs = []
        for layer in self.encoder.layers:
            hidden = layer(hidden, None, is_causal=True)
            outputs.append(hidden)
        # All layers always run, as the graph has no branches. Copying the outputs is a thousandth of the work.
        chosen = torch.stack(outputs).index_select(0, len(outputs) - 1 - skip).squeeze(0)  # [B, 77, D]
        return self.final_layer_norm(chosen)  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """One sampler step: input scaling, the UNet, guidance with rescale, and the sampler's update.

    The latents and the arithmetic around the UNet are float32; the UNet runs in its own dtype. A sample's
    prompts are composed as in equation 11 of Liu et al. 2022 (arXiv:2206.01714): m_c = m_u + sum_p
    shares_p (m_p - m_u). Guidance rescale is equations 15 and 16 of Lin et al. 2023 (arXiv:2305.08891), with
    the standard deviation of m_c.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        take_any_side(unet)
        self.unet = unet

    def forward(
        self,
        state: Tensor,  # [B, K+1, C, h, w] f32
        noise: Tensor,  # [B, C, h, w] f32
        timestep: Tensor,  # [B] f32
        weights: Tensor,  # [B, K+1] f32
        guidance: Tensor,  # [B, 2] f32: scale g, rescale phi
        update: Tensor,  # [B, K+1, K+3] f32
        text: Tensor,  # [R, L, D] in the UNet's dtype
        row: Tensor,  # [R] i64: the sample that a row belongs to
        uncond: Tensor,  # [B] i64: each sample's unconditional row
        cond: Tensor,  # [B, P] i64: each sample's rows, one for each prompt
        shares: Tensor,  # [B, P] f32: weight of each prompt; 0 for padding
        extra: Tensor | None = None,  # [B, Cx, h, w] in the UNet's dtype: conditioning
        noise_level: Tensor | None = None,  # [B] i64: the class label of a UNet that takes one
    ) -> tuple[Tensor, Tensor]:
        b, slots, c, h, w = state.shape
        flat = state.flatten(2)  # [B, K+1, Chw]
        x = torch.bmm(weights.unsqueeze(1), flat).reshape(b, c, h, w).to(self.unet.dtype)
        if extra is not None:
            # Not scaled with the latents: it is the same at every noise level.
            x = torch.cat([x, extra], dim=1)
        rows = x.index_select(0, row)  # [R, C + Cx, h, w]
        labels = None if noise_level is None else noise_level.index_select(0, row)
        times = timestep.index_select(0, row)
        output = self.unet(rows, times, text, class_labels=labels, return_dict=False)[0].float().flatten(1)
        m_u = output.index_select(0, uncond)  # [B, Chw]
        # embedding() gathers by a 2-D index. Padding points at rows of the same sample, so that a non-finite value of
        # another sample is never multiplied by a share of 0.
        m_p = embedding(cond, output)  # [B, P, Chw]
        # One prompt of share 1 gives 1 m_p + 0 m_u: m_p, bit for bit.
        rest = 1 - shares.sum(1, keepdim=True)
        m_c = torch.bmm(shares.unsqueeze(1), m_p).squeeze(1) + rest * m_u
        scale, rescale = guidance.chunk(2, dim=1)  # [B, 1] each
        d = m_u + scale * (m_c - m_u)
        # Bessel's correction cancels in the ratio. The graph would compute it from shapes, which ONNX Runtime does on
        # the CPU, and then it cannot capture the graph on a GPU.
        std_c, std_d = m_c.std(1, correction=0).unsqueeze(1), d.std(1, correction=0).unsqueeze(1)
        # With phi = 0, d stays the same bit for bit, even where its deviation is 0: 0 / 0 is never computed.
        off = rescale == 0
        ratio = std_c / torch.where(off, 1.0, std_d)
        d = d * torch.where(off, 1.0, rescale * ratio + (1 - rescale))
        inputs = torch.cat([flat, d.unsqueeze(1), noise.flatten(1).unsqueeze(1)], dim=1)
        new = torch.bmm(update, inputs)  # [B, K+1, Chw]
        # One reduction: a non-finite value makes the sum non-finite. Sums of meaningful latents do not overflow.
        finite = (new.flatten(1).sum(1).abs() <= torch.finfo(torch.float32).max).to(torch.uint8)
        return new.reshape(b, slots, c, h, w), finite


class Decoder(nn.Module):
    """Decode the sampler's latents [B, C, h, w] to an image [B, 3, H, W], nominally in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        z = (latents / self.scaling_factor).to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(z)).float()  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Encode an image [B, 3, H, W] in [-1, 1] to moments of its latents [B, 2C, h, w]: mean, then log variance.

    Sampling and the scaling factor are left to the host. diffusers clamps the log variance to -30 .. 20 when it
    samples, and so does this graph.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        moments = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))).float()
        mean, logvar = moments.chunk(2, dim=1)
        return torch.cat([mean, logvar.clamp(-30.0, 20.0)], dim=1)
