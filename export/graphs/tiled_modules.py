"""Decoder and encoder for a tile of a large image, in PyTorch: the reference for the graphs of tiled_graph.py.

Two operations in a VAE depend on the whole image: the statistics of group normalisations, and the attention in the
middle block. These modules take statistics as an input, and their attention also attends to context tokens, averages
of the tokens elsewhere. The host computes both from outputs of the tiles.

Shapes: h x w the tile's latents, N norms, G groups, C channels of the attention, M context tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sd2rt.engines.errors import BuildError


class _Call:
    """State of one call: the inputs of norms and attention, and the outputs that they collect."""

    def __init__(
        self, stats: Tensor, given: Tensor, weights: Tensor, context: Tensor, context_bias: Tensor
    ) -> None:
        self.stats, self.given = stats, given
        self.weights = weights / weights.sum()
        self.context, self.context_bias = context, context_bias
        self.own: dict[int, Tensor] = {}
        self.tokens: Tensor | None = None

    def shares(self, factor: int) -> Tensor:
        """Weights [HW, 1] of an average over the tile at ``factor`` times the size of its latents."""
        h, w = self.weights.shape
        spread = self.weights.reshape(h, 1, w, 1).expand(h, factor, w, factor)
        return spread.reshape(-1, 1) / factor**2

    def outputs(self) -> tuple[Tensor, Tensor]:
        assert self.tokens is not None
        return torch.stack([self.own[index] for index in range(len(self.own))]), self.tokens


class TiledNorm(nn.Module):
    """Group normalisation that accepts given statistics, and always records the weighted statistics of its input.

    In float32 throughout. The variance is computed about the mean, never as a difference of squares.
    """

    def __init__(self, norm: nn.GroupNorm, index: int, factor: int) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps = norm.num_groups, norm.eps
        self.index, self.factor = index, factor
        self.call: _Call | None = None

    def forward(self, x: Tensor) -> Tensor:  # [1, C, H, W]
        call = self.call
        assert call is not None
        shares = call.shares(self.factor)
        size = len(self.weight) // self.groups
        groups = x.float().reshape(self.groups, size, -1)
        mean = (groups @ shares).mean(1)  # [G, 1]
        centred = groups - mean.unsqueeze(2)
        own = torch.cat([mean, (centred.square() @ shares).mean(1)], dim=1)  # [G, 2]
        call.own[self.index] = own
        used = call.given * call.stats[self.index] + (1 - call.given) * own
        gain = self.weight.float().reshape(self.groups, size, 1) * (used[:, 1:, None] + self.eps).rsqrt()
        offset = (mean - used[:, :1]).unsqueeze(2) * gain
        offset = offset + self.bias.float().reshape(self.groups, size, 1)
        return (centred * gain + offset).reshape(x.shape).to(x.dtype)


class TiledAttention(nn.Module):
    """Attention of a tile's tokens to each other, and to context tokens that represent the rest of the image.

    A token that represents n positions gets log(n) added to its scores, which weighs it like n equal tokens. The
    bias is an extra channel of queries (ones) and keys: a mask would have to be as large as the scores.
    """

    def __init__(self, attention: Attention, norm: TiledNorm) -> None:
        super().__init__()
        self.group_norm = norm
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out
        if attention.heads != 1 or not attention.residual_connection:
            raise BuildError(
                "the autoencoder's attention is not SD2's: expected one head and a residual connection"
            )
        self.rescale = attention.rescale_output_factor
        self.call: _Call | None = None

    def forward(self, x: Tensor, temb: None = None) -> Tensor:  # [1, C, h, w]
        call = self.call
        assert call is not None
        normal = self.group_norm(x)
        call.tokens = normal[0].float()
        tokens = normal.flatten(2).transpose(1, 2)  # [1, hw, C]
        seen = torch.cat([tokens, call.context.unsqueeze(0)], dim=1)  # [1, hw + M, C]
        query, key, value = self.to_q(tokens), self.to_k(seen), self.to_v(seen)
        scale = query.shape[-1] ** -0.5
        none = torch.zeros_like(tokens[:, :, :1])
        bias = (call.context_bias / scale).to(key.dtype).reshape(1, -1, 1)
        query = torch.cat([query, none + 1], dim=2)
        key = torch.cat([key, torch.cat([none, bias], dim=1)], dim=2)
        attended = scaled_dot_product_attention(
            query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), scale=scale
        ).squeeze(1)
        attended = self.to_out[0](attended).transpose(1, 2).reshape(x.shape)
        return (attended + x) / self.rescale  # type: ignore[no-any-return]


class TiledDecoder(nn.Module):
    """:class:`sd2rt.export.graphs.part_modules.Decoder` for a tile of the latents [1, C, h, w]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.scaling_factor = float(vae.config.scaling_factor)
        levels = len(vae.config.block_out_channels)
        self._set_call = _adapt(self, lambda block: levels - 1 if block is None else block)

    def forward(
        self,
        latents: Tensor,  # [1, C, h, w] f32
        stats: Tensor,  # [N, G, 2] f32: mean and variance to use
        given: Tensor,  # [1] f32: 1 to use them, 0 to use the tile's own
        weights: Tensor,  # [h, w] f32: of the tile's latents in averages over the image
        context: Tensor,  # [M, C] in the network's dtype: tokens that represent the whole image
        context_bias: Tensor,  # [M] f32: log of the number of positions outside the tile that each represents
    ) -> tuple[Tensor, Tensor, Tensor]:  # image [1, 3, H, W], own statistics [N, G, 2], tokens [C, h, w]
        call = _Call(stats, given, weights, context, context_bias)
        self._set_call(call)
        z = (latents / self.scaling_factor).to(self.post_quant_conv.weight.dtype)
        image = self.decoder(self.post_quant_conv(z)).float()
        self._set_call(None)
        return image, *call.outputs()


class TiledEncoder(nn.Module):
    """:class:`~sd2rt.export.graphs.part_modules.Encoder` for a tile of the image [1, 3, H, W].

    See :class:`TiledDecoder`.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv
        levels = len(vae.config.block_out_channels)
        self._set_call = _adapt(self, lambda block: 0 if block is None else levels - 1 - block)

    def forward(
        self,
        image: Tensor,
        stats: Tensor,
        given: Tensor,
        weights: Tensor,
        context: Tensor,
        context_bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        call = _Call(stats, given, weights, context, context_bias)
        self._set_call(call)
        moments = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))).float()
        self._set_call(None)
        mean, logvar = moments.chunk(2, dim=1)
        return torch.cat([mean, logvar.clamp(-30.0, 20.0)], dim=1), *call.outputs()


def _adapt(network: nn.Module, level: Callable[[int | None], int]) -> Callable[[_Call | None], None]:
    """Replace a network's norms and attention by the modules above, under the same names.

    Args:
        level: number of doublings of the size from the latents to a block of that number, or, for None, to the last
            norm.

    Returns:
        A function that sets the call of all these modules.
    """
    replacements: list[TiledNorm | TiledAttention] = []
    for path, norm in list(network.named_modules()):
        if isinstance(norm, nn.GroupNorm):
            block = re.search(r"\.(?:up|down)_blocks\.(\d+)\.", path)
            doubled = 0 if ".mid_block." in path else level(int(block[1]) if block else None)
            replacements.append(TiledNorm(norm, len(replacements), 2**doubled))
            network.set_submodule(path, replacements[-1])
    if len({norm.groups for norm in replacements if isinstance(norm, TiledNorm)}) != 1:
        raise BuildError(
            "the autoencoder's group normalisations are not SD2's: expected the same number of groups in all"
        )
    attentions = [item for item in network.named_modules() if isinstance(item[1], Attention)]
    if len(attentions) != 1:
        raise BuildError(f"the autoencoder is not SD2's: it has {len(attentions)} attentions, expected one")
    for path, attention in attentions:
        replacements.append(TiledAttention(attention, attention.group_norm))
        network.set_submodule(path, replacements[-1])

    def set_call(call: _Call | None) -> None:
        for module in replacements:
            module.call = call

    return set_call
