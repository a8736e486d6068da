"""Seeded random-weight checkpoints of SD2's architecture, for tests and benchmarks.

The weights are not derived from any model, so no licence of Stability AI applies to them. Each tensor has its own
generator, seeded by (seed, part, key): both layouts of one seed hold the same weights, and a file of any size is
written one tensor at a time.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from sd2rt.export.checkpoints.ldm.keys import ldm_layout
from sd2rt.export.checkpoints.ldm.tensor import PREFIXES
from sd2rt.export.checkpoints.networks import skeleton
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs
from sd2rt.export.testing.folder_writer import write_folder
from sd2rt.export.testing.safetensors_writer import Entry, as_stored, write_safetensors

Layout = Literal["diffusers", "ldm"]


def random_checkpoint(
    path: Path,
    *,
    configs: PipelineConfigs,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layout: Layout = "diffusers",
    legacy_keys: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a checkpoint of random weights and return ``path``.

    Args:
        path: the folder to write into (``layout="diffusers"``), or the ``.safetensors`` or ``.ckpt`` file to
            write (``layout="ldm"``). A ``.ckpt`` takes the memory of all its weights, a ``.safetensors`` of one
            tensor.
        configs: configurations of the networks.
        seed: seed of the weights; the same seed gives the same bytes on one machine.
        dtype: dtype of the stored weights. They are drawn in float32 and rounded.
        layout: a diffusers folder, or one file in the layout of the original releases, with the tensors that
            nothing reads: the last text layer, the text projection, the noise-schedule buffers.
        legacy_keys: for the diffusers layout, key names of 2022: ``text_model.`` before the text encoder's
            keys, its ``position_ids``, and the VAE's old attention names.
        progress: called with a message before each part is written.
    """
    say = progress if progress is not None else _silent
    weights = RandomWeights(configs, seed)
    if layout == "diffusers":

        def entries_of(part: NetworkName) -> list[Entry]:
            say(f"writing random weights of {part}")
            entries = weights.entries(part)
            if legacy_keys:
                entries = [_as_legacy(part, entry) for entry in entries]
                entries += [_position_ids(configs)] if part == "text_encoder" else []
            return entries

        return write_folder(path, configs, entries_of, dtype)

    path.parent.mkdir(parents=True, exist_ok=True)
    entries = list(weights.ldm_entries())
    say(f"writing random weights to {path.name}")
    if path.suffix == ".safetensors":
        with path.open("wb") as stream:
            write_safetensors(stream, entries, dtype)
    else:
        state = {entry.key: as_stored(entry.make(), dtype) for entry in entries}
        torch.save({"state_dict": state, "global_step": 0}, path)
    return path


class RandomWeights:
    """Random weights of a pipeline, drawn tensor by tensor."""

    def __init__(self, configs: PipelineConfigs, seed: int) -> None:
        self.configs = configs
        self.seed = seed

    def shapes(self, part: NetworkName) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights of ``part``, by their current names in diffusers or transformers."""
        state = skeleton(part, self.configs.part(part)).state_dict()
        return {key: tuple(tensor.shape) for key, tensor in state.items()}

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        """The part's weights in float32, all at once."""
        return {key: draw(self.seed, part, key, shape) for key, shape in self.shapes(part).items()}

    def entries(self, part: NetworkName) -> list[Entry]:
        """The part's weights in the diffusers layout."""
        return [self._entry(part, key, shape) for key, shape in self.shapes(part).items()]

    def ldm_entries(self) -> Iterator[Entry]:
        """All tensors of an original single-file release: the weights, and the tensors that nothing reads."""
        yield from _schedule_buffers(self.configs.scheduler)
        if self.configs.low_res_scheduler is not None:
            yield from _schedule_buffers(self.configs.low_res_scheduler, "low_scale_model.")
        for part in self.configs.parts:
            shapes = self.shapes(part)
            if part == "text_encoder":
                shapes |= self._unused_layer(shapes)
            for tensor in ldm_layout(part, shapes, self.configs):
                members = [self._entry(part, key, shapes[key]) for key in tensor.members]
                shape = (sum(m.shape[0] for m in members), *members[0].shape[1:])
                yield Entry(
                    tensor.key,
                    (*shape, 1, 1) if tensor.pointwise else shape,
                    _stack(members, tensor.pointwise),
                )
        width = int(self.configs.text_encoder["hidden_size"])
        prefix = PREFIXES["text_encoder"]
        yield self._entry("text_encoder", "text_projection", (width, width), prefix)
        yield Entry(prefix + "logit_scale", (), lambda: torch.tensor(math.log(100.0)))
        if self.configs.depth_estimator is not None:
            # MiDaS's vision transformer includes the classifier that it was trained with.
            head = PREFIXES["depth_estimator"] + "pretrained.model.head."
            width = int(self.configs.depth_estimator["hidden_size"])
            yield self._entry("depth_estimator", "weight", (_IMAGENET_CLASSES, width), head)
            yield self._entry("depth_estimator", "bias", (_IMAGENET_CLASSES,), head)

    def _entry(self, part: NetworkName, key: str, shape: tuple[int, ...], prefix: str = "") -> Entry:
        return Entry(prefix + key, shape, lambda: draw(self.seed, part, key, shape))

    def _unused_layer(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the text encoder's last layer, which SD2 never runs but its original files contain."""
        layers = int(self.configs.text_encoder["num_hidden_layers"])
        first = "encoder.layers.0."
        return {
            key.replace(first, f"encoder.layers.{layers}."): shape
            for key, shape in shapes.items()
            if key.startswith(first)
        }


# Standard deviation of each kind of weight, relative to 1/sqrt(fan-in); the first matching pattern applies. The last
# layer of a residual branch gets small weights, so that branches perturb the residual stream and do not dominate it:
# a trajectory then amplifies rounding errors little. SiLU scales its input by about 0.6, hence the gains above 1.
_GAINS: tuple[tuple[NetworkName, str, float], ...] = (
    ("text_encoder", r"to_out|out_proj|fc2", 0.7),
    ("unet", r"^conv_out\.weight$", 0.9),
    ("unet", r"\.conv2\.weight$|\.to_out\.0\.weight$|\.ff\.net\.2\.weight$|\.proj_out\.weight$", 0.6),
    ("unet", r"time_emb", 1.4),
    ("vae", r"^decoder\.conv_out\.weight$", 0.7),
    ("vae", r"\.conv2\.weight$|\.to_out\.0\.weight$", 0.8),
)
_BIAS_STD = 0.05
_NORM_GAIN_STD = 0.1
_EMBEDDING_STD = 0.02

# The depth estimator's tokens have unit variance, and its position embeddings have to matter beside them. Its last
# bias keeps depths positive before the final ReLU.
_POSITION_STD = 0.2
_DEPTH_MEAN = 16.0

_IMAGENET_CLASSES = 1000

# A trained encoder's latents have this standard deviation before they are scaled by 0.18215; the variance of its
# posterior is small.
_LATENT_STD = 1 / 0.18215
_LATENT_LOGVAR = -9.0


def draw(seed: int, part: NetworkName, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw one weight in float32; it depends on the arguments only."""
    digest = hashlib.sha256(f"{seed}/{part}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
    if key.startswith("embeddings."):
        return noise.mul_(_EMBEDDING_STD)
    if part == "depth_estimator" and key.endswith(("cls_token", "position_embeddings")):
        return noise.mul_(_POSITION_STD)
    if part == "depth_estimator" and key == "head.head.4.bias":
        return noise.mul_(_BIAS_STD).add_(_DEPTH_MEAN)
    if key == "quant_conv.bias":
        half = shape[0] // 2
        noise.mul_(_BIAS_STD)[half:] += _LATENT_LOGVAR
        return noise
    if len(shape) == 1:
        return noise.mul_(_BIAS_STD) if key.endswith(".bias") else noise.mul_(_NORM_GAIN_STD).add_(1.0)
    noise.mul_(_gain(part, key) / math.sqrt(math.prod(shape[1:])))
    if key == "quant_conv.weight":
        noise[: shape[0] // 2] *= _LATENT_STD
    return noise


def _gain(part: NetworkName, key: str) -> float:
    matching = (gain for network, pattern, gain in _GAINS if network == part and re.search(pattern, key))
    return next(matching, 1.0)


def _stack(members: list[Entry], pointwise: bool) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        tensor = members[0].make() if len(members) == 1 else torch.cat([member.make() for member in members])
        return tensor[:, :, None, None] if pointwise else tensor

    return make


_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _as_legacy(part: NetworkName, entry: Entry) -> Entry:
    key = f"text_model.{entry.key}" if part == "text_encoder" else entry.key
    if part == "vae" and ".attentions." in key:
        for new, old in _OLD_ATTENTION.items():
            key = key.replace(f".{new}.", f".{old}.")
    return Entry(key, entry.shape, entry.make)


def _position_ids(configs: PipelineConfigs) -> Entry:
    length = int(configs.text_encoder["max_position_embeddings"])
    key = "text_model.embeddings.position_ids"
    return Entry(key, (1, length), lambda: torch.arange(length)[None], integer=True)


def _schedule_buffers(scheduler: Config, prefix: str = "") -> Iterator[Entry]:
    """The noise-schedule buffers that LDM registers; nothing reads them, but published files have them."""
    steps = int(scheduler["num_train_timesteps"])
    roots = torch.linspace(
        scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, steps, dtype=torch.float64
    )
    betas = roots**2
    alphas = torch.cumprod(1 - betas, 0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas).log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1).sqrt(),
    }
    for key, value in buffers.items():
        single = value.float()
        yield Entry(prefix + key, (steps,), lambda single=single: single)  # type: ignore[misc]


def _silent(message: str) -> None:
    pass
