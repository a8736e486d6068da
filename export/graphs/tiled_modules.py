"""Decoder and encoder for a tile of a large image, in PyTorch: what the graphs of tiled_graph.py are compared with.

Two things in them look at the whole image: the statistics of group normalisations, and the attention in the middle.
Here the statistics can be given, and the attention sees, beside the tile's own tokens, averages of those elsewhere.
Both come from the tiles themselves, by the host, which asks every tile for its share of them.

Shapes: h x w the tile's latents, N norms, G groups, C channels in the middle, M tokens of the whole image.
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
    """What norms and attention need of one call, and what they leave for its outputs."""

    def __init__(
        self, stats: Tensor, given: Tensor, weights: Tensor, context: Tensor, context_bias: Tensor
    ) -> None:
        self.stats, self.given = stats, given
        self.weights = weights / weights.sum()
        self.context, self.context_bias = context, context_bias
        self.own: dict[int, Tensor] = {}
        self.tokens: Tensor | None = None

    def shares(self, factor: int) -> Tensor:
        """Each element's part in an average over the tile, ``factor`` times as large as its latents: [HW, 1]."""
        h, w = self.weights.shape
        spread = self.weights.reshape(h, 1, w, 1).expand(h, factor, w, factor)
        return spread.reshape(-1, 1) / factor**2

    def outputs(self) -> tuple[Tensor, Tensor]:
        assert self.tokens is not None
        return torch.stack([self.own[index] for index in range(len(self.own))]), self.tokens


class TiledNorm(nn.Module):
    """A group normalisation whose statistics can be given; it tells those of its input, weighted, in any case.

    In float32 throughout. The variance is about the mean, never a difference of squares.
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
    """The attention of a tile's tokens to each other, and to tokens that stand for what lies elsewhere.

    One that stands for n positions has log(n) added to its scores, as n equal tokens would weigh. The addition is
    one more channel of queries (ones) and keys: a mask would have to be as large as the scores.
    """

    def __init__(self, attention: Attention, norm: TiledNorm) -> None:
        super().__init__()
        self.group_norm = norm
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out
        if attention.heads != 1 or not attention.residual_connection:
            raise BuildError(
                "the autoencoder's attention is not SD2's: it has one head, around which its input goes"
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
        found = scaled_dot_product_attention(
            query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), scale=scale
        ).squeeze(1)
        found = self.to_out[0](found).transpose(1, 2).reshape(x.shape)
        return (found + x) / self.rescale  # type: ignore[no-any-return]


class TiledDecoder(nn.Module):
    """:class:`sd2rt.export.graphs.part_modules.Decoder` for a tile of the latents [1, C, h, w]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.scaling_factor = float(vae.config.scaling_factor)
        levels = len(vae.config.block_out_channels)
        self._tell = _adapt(self, lambda block: levels - 1 if block is None else block)

    def forward(
        self,
        latents: Tensor,  # [1, C, h, w] f32
        stats: Tensor,  # [N, G, 2] f32: mean and variance to use
        given: Tensor,  # [1] f32: 1 to use them, 0 to use the tile's own
        weights: Tensor,  # [h, w] f32: of the tile's latents in averages over the image
        context: Tensor,  # [M, C] in the network's dtype: tokens that stand for the whole image
        context_bias: Tensor,  # [M] f32: logarithm of how many positions outside of the tile each stands for
    ) -> tuple[Tensor, Tensor, Tensor]:  # image [1, 3, H, W], own statistics [N, G, 2], tokens [C, h, w]
        call = _Call(stats, given, weights, context, context_bias)
        self._tell(call)
        z = (latents / self.scaling_factor).to(self.post_quant_conv.weight.dtype)
        image = self.decoder(self.post_quant_conv(z)).float()
        self._tell(None)
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
        self._tell = _adapt(self, lambda block: 0 if block is None else levels - 1 - block)

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
        self._tell(call)
        moments = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))).float()
        self._tell(None)
        mean, logvar = moments.chunk(2, dim=1)
        return torch.cat([mean, logvar.clamp(-30.0, 20.0)], dim=1), *call.outputs()


def _adapt(network: nn.Module, level: Callable[[int | None], int]) -> Callable[[_Call | None], None]:
    """Put the modules above into a network, under the names of those that they replace.

    Args:
        level: how often the size doubles from the latents to a block of that number, or, for None, to the last norm.

    Returns:
        What tells them of a call.
    """
    made: list[TiledNorm | TiledAttention] = []
    for path, norm in list(network.named_modules()):
        if isinstance(norm, nn.GroupNorm):
            block = re.search(r"\.(?:up|down)_blocks\.(\d+)\.", path)
            doubled = 0 if ".mid_block." in path else level(int(block[1]) if block else None)
            made.append(TiledNorm(norm, len(made), 2**doubled))
            network.set_submodule(path, made[-1])
    if len({norm.groups for norm in made if isinstance(norm, TiledNorm)}) != 1:
        raise BuildError(
            "the autoencoder's group normalisations are not SD2's: they have one number of groups"
        )
    attentions = [item for item in network.named_modules() if isinstance(item[1], Attention)]
    if len(attentions) != 1:
        raise BuildError(f"the autoencoder is not SD2's: it has {len(attentions)} attentions, expected one")
    for path, attention in attentions:
        made.append(TiledAttention(attention, attention.group_norm))
        network.set_submodule(path, made[-1])

    def tell(call: _Call | None) -> None:
        for module in made:
            module.call = call

    return tell
