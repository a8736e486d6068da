"""Inputs and outputs of each part: names, dtypes and symbolic shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.sampler_config import STATE_SLOTS
from sd2rt.engines.bundle.schema import Part, Tensor

TEXT_LENGTH = 77
"""Tokens of a text, or of each chunk of a long one."""
_MAX_NORMS = 1000


@dataclass(frozen=True, slots=True)
class Interface:
    """A part's input and output tensors, in order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Dimensions of the networks' inputs and outputs, from a checkpoint's configuration."""

    text_width: int
    channels: int
    """Channels of the latents."""
    factor: int
    """Pixels per latent, along one side."""
    extra: int = 0
    """Conditioning channels of the denoiser's input, in addition to the latents."""
    class_label: bool = False
    depth_size: tuple[int, int] = (0, 0)
    """Width and height of the depth estimator's input; (0, 0) without one."""
    norms: Mapping[PartName, Sequence[str]] = field(default_factory=dict)
    """Names of the group normalisations in each part that works on tiles."""
    groups: int = 0
    """Groups of each of these normalisations."""
    tokens_width: int = 0
    """Channels of the autoencoder's attention."""


def interface(part: PartName, dimensions: Dimensions, fp: str) -> Interface:
    """The inputs and outputs of ``part`` for a checkpoint of these dimensions; ``fp`` is the part's dtype."""
    slots, channels, width = STATE_SLOTS, dimensions.channels, dimensions.text_width
    image = (f"{dimensions.factor}*h", f"{dimensions.factor}*w")
    depth = (dimensions.depth_size[1], dimensions.depth_size[0])
    f32, hidden = "float32", ("B", TEXT_LENGTH, width)
    state = ("B", slots, channels, "h", "w")
    denoiser: list[tuple[str, str, tuple[int | str, ...]]] = [
        ("state", f32, state),
        ("noise", f32, ("B", channels, "h", "w")),
        ("timestep", f32, ("B",)),
        ("weights", f32, ("B", slots)),
        ("guidance", f32, ("B", 2)),
        ("update", f32, ("B", slots, slots + 2)),
        ("text", fp, ("R", "L", width)),
        ("row", "int64", ("R",)),
        ("uncond", "int64", ("B",)),
        ("cond", "int64", ("B", "P")),
        ("shares", f32, ("B", "P")),
    ]
    if dimensions.extra:
        denoiser.append(("extra", fp, ("B", dimensions.extra, "h", "w")))
    if dimensions.class_label:
        denoiser.append(("noise_level", "int64", ("B",)))
    latents, pixels = ("latents", f32, (1, channels, "h", "w")), ("image", f32, (1, 3, *image))
    moments = ("moments", f32, (1, 2 * channels, "h", "w"))
    stats = (len(dimensions.norms.get(part, ())), dimensions.groups, 2)
    tile_inputs: list[tuple[str, str, tuple[int | str, ...]]] = [
        ("stats", f32, stats),
        ("given", f32, (1,)),
        ("weights", f32, ("h", "w")),
        ("context", fp, ("M", dimensions.tokens_width)),
        ("context_bias", f32, ("M",)),
    ]
    tile_outputs: list[tuple[str, str, tuple[int | str, ...]]] = [
        ("own", f32, stats),
        ("tokens", f32, (dimensions.tokens_width, "h", "w")),
    ]
    tables: dict[PartName, tuple[list[tuple[str, str, tuple[int | str, ...]]], ...]] = {
        "text_encoder": (
            [("embeddings", fp, hidden), ("skip", "int64", (1,))],
            [("hidden", fp, hidden)],
        ),
        "denoiser": (denoiser, [("state_out", f32, state), ("finite", "uint8", ("B",))]),
        "decoder": ([("latents", f32, ("B", channels, "h", "w"))], [("image", f32, ("B", 3, *image))]),
        "encoder": ([("image", f32, ("B", 3, *image))], [("moments", f32, ("B", 2 * channels, "h", "w"))]),
        "tiled_decoder": ([latents, *tile_inputs], [pixels, *tile_outputs]),
        "tiled_encoder": ([pixels, *tile_inputs], [moments, *tile_outputs]),
        "depth_estimator": ([("image", f32, ("B", 3, *depth))], [("depth", f32, ("B", *depth))]),
    }
    inputs, outputs = (
        tuple(Tensor.model_validate({"name": n, "dtype": d, "shape": s}) for n, d, s in side)
        for side in tables[part]
    )
    return Interface(inputs, outputs)


def check_interface(name: PartName, part: Part, dimensions: Dimensions) -> None:
    """Check a part's tensors, which sessions and the code that fills them rely on.

    The statistics of tiled parts have the sizes that the part itself states; ``dimensions`` has the others.

    Raises:
        ValueError: a tensor is missing, unknown, out of order, or has another dtype or shape.
    """
    stats = next((tensor.shape for tensor in part.inputs if tensor.name == "stats"), ())
    tokens = next((tensor.shape for tensor in part.outputs if tensor.name == "tokens"), ())
    norms, groups = (*(size for size in stats if isinstance(size, int)), 0, 0)[:2]
    width = next((size for size in tokens if isinstance(size, int)), 0)
    expected = interface(
        name,
        replace(
            dimensions,
            norms={name: ("",) * min(norms, _MAX_NORMS)},
            groups=groups or 1,
            tokens_width=width or 1,
        ),
        "float16" if part.precision == "fp16" else "float32",
    )
    for side, found, wanted in (
        ("input", part.inputs, expected.inputs),
        ("output", part.outputs, expected.outputs),
    ):
        for index, (tensor, other) in enumerate(zip_longest(found, wanted)):
            if tensor != other:
                raise ValueError(
                    f"{side} {index} of {name} is {_described(tensor)}, "
                    f"but this kind of model has {_described(other)}"
                )


def _described(tensor: Tensor | None) -> str:
    return (
        "missing" if tensor is None else f"{tensor.name} {tensor.dtype}[{','.join(map(str, tensor.shape))}]"
    )
