"""Adding LoRAs to the weights of a bundle's networks, in float32 and in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Array
from sd2rt.engines.lora.file import Lora, LowRank
from sd2rt.engines.lora.keys import Module, Network
from sd2rt.engines.weights.shapes import linear_shape

Shapes = Mapping[PartName, Mapping[str, tuple[int, ...]]]
"""The weights of the parts that a LoRA can change, by name: their shapes in PyTorch's orientation."""

PARTS: dict[Network, PartName] = {"unet": "denoiser", "text_encoder": "text_encoder"}
"""The parts that a LoRA can change, by what its file calls their networks."""

_SHOWN_LAYERS = 3
_OTHER_MODELS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
"""By the width of the text, or of the text encoder."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What LoRAs together add to one weight."""

    names: tuple[str, ...]
    """The LoRAs', for messages."""
    terms: tuple[tuple[float, LowRank], ...]
    """Each with its scale."""

    def added_to(self, weight: Array, dtype: DTypeLike = np.float32) -> Array:
        """The weight, in PyTorch's orientation, with the change: added in float32 and rounded to ``dtype`` once.

        What is returned lies in memory in the order that the weight lies in.

        Raises:
            RequestError: a sum is not finite, or larger than ``dtype`` holds.
        """
        dtype = np.dtype(dtype)
        terms = (low_rank.delta(scale) for scale, low_rank in self.terms)
        with np.errstate(over="ignore", invalid="ignore"):
            # One after the other: a weight's worth of memory at a time.
            total = next(terms)
            for term in terms:
                total += term
            merged = np.empty_like(weight, np.float32)
            np.add(total.reshape(weight.shape), weight, out=merged)
        largest = float(np.finfo(dtype).max)
        # The negation is true of NaN too.
        if not (-largest <= merged.min() and merged.max() <= largest):
            raise RequestError(
                f"with {', '.join(self.names)} weights are larger than {dtype} holds: give a smaller scale"
            )
        return merged.astype(dtype, copy=False)


class MergedWeights(Mapping[str, Array]):
    """The weights of a part that LoRAs change, by name; each is made when it is asked for, and not kept.

    Args:
        read: a weight's own value by its name, in the precision that it is rounded to once all is added.
    """

    def __init__(self, read: Callable[[str], Array], changes: Mapping[str, Change]) -> None:
        self._read, self._changes = read, changes

    def __getitem__(self, name: str) -> Array:
        change, weight = self._changes[name], self._read(name)
        return change.added_to(weight, weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)


def changes(loras: Sequence[Lora], shapes: Shapes) -> dict[PartName, dict[str, Change]]:
    """What LoRAs together add to which weights; the order that they are given in makes no difference to a bit.

    Raises:
        RequestError: one was made for another model, or changes layers that the networks do not have; or two have
            one name.
    """
    names = [lora.name for lora in loras]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"two LoRAs are named {name!r}: give one of them another name, or leave it out"
            )
    terms: dict[PartName, dict[str, list[tuple[Lora, LowRank]]]] = {}
    # Sums of floats depend on their order.
    for lora in sorted(loras, key=lambda lora: (lora.sha256, lora.scale)):
        for (part, weight), low_rank in _fit(lora, shapes).items():
            terms.setdefault(part, {}).setdefault(weight, []).append((lora, low_rank))
    return {
        part: {
            weight: Change(
                tuple(lora.name for lora, _ in several),
                tuple((lora.scale, low_rank) for lora, low_rank in several),
            )
            for weight, several in weights.items()
        }
        for part, weights in terms.items()
    }


def merged_weights(bundle: Bundle, loras: Sequence[Lora]) -> dict[PartName, MergedWeights]:
    """The weights of the parts that LoRAs change, by part; made when they are asked for.

    Raises:
        RequestError: a LoRA was made for another model, or two have one name.
        BundleError: the bundle's map of its weights cannot be read.
    """
    if not loras:
        return {}
    # Nothing else of a run takes this map, and it is a sixth of what there is to import.
    from sd2rt.engines.weights.initializers import Weights

    known = {}
    for part in PARTS.values():
        entry = bundle.manifest.parts[part]
        known[part] = Weights.of(entry, bundle.file(entry.onnx))
    found = changes(loras, {part: weights.shapes() for part, weights in known.items()})
    return {part: MergedWeights(known[part].read, own) for part, own in found.items()}


def changed_parts(
    before: Sequence[Lora], after: Sequence[Lora], merged: Mapping[PartName, MergedWeights]
) -> dict[PartName, MergedWeights | None]:
    """The parts whose weights are others than before, and what they are now: None for the bundle's own.

    Args:
        merged: what ``after`` makes of the bundle's.
    """
    parts: dict[PartName, MergedWeights | None] = {}
    for network, part in PARTS.items():
        own = [
            sorted(
                (lora.sha256, lora.scale)
                for lora in loras
                if any(module.network == network for module in lora.layers)
            )
            for loras in (before, after)
        ]
        if own[0] != own[1]:
            parts[part] = merged.get(part)
    return parts


def _fit(lora: Lora, shapes: Shapes) -> dict[tuple[PartName, str], LowRank]:
    known = {part: _Modules(shapes[part]) for part in PARTS.values()}
    found: dict[tuple[PartName, str], LowRank] = {}
    lost = []
    for module, low_rank in lora.layers.items():
        part = PARTS[module.network]
        weight = known[part].weight(module)
        if weight is None:
            lost.append(str(module))
        elif (part, weight) in found:
            raise RequestError(f"{lora.path} changes {weight} in two layouts: it is damaged, get it again")
        else:
            found[part, weight] = low_rank
    # Before what is lost: another model's LoRA has other layers too, and this says why.
    for (part, weight), low_rank in found.items():
        _check_width(lora, weight, low_rank, shapes[part][weight])
    if lost:
        raise RequestError(
            f"{lora.path} changes {len(lost)} layers that this bundle's networks do not have, such as "
            f"{', '.join(lost[:_SHOWN_LAYERS])}: it was made for another model"
        )
    for (part, weight), low_rank in found.items():
        expected = shapes[part][weight]
        if linear_shape(low_rank.shape) != linear_shape(expected):
            raise RequestError(
                f"{lora.path} changes {weight} by {list(low_rank.shape)}, this bundle's has {list(expected)}: "
                "it was made for another model"
            )
    return found


class _Modules:
    """A network's layers, by their paths and by those with ``_`` in the place of dots."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        paths = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) in (2, 4)]
        self._dotted = {path: f"{path}.weight" for path in paths if f"{path}.weight" in shapes}
        self._flat = {path.replace(".", "_"): weight for path, weight in self._dotted.items()}

    def weight(self, module: Module) -> str | None:
        return (self._flat if module.flat else self._dotted).get(module.path)


def _check_width(lora: Lora, weight: str, low_rank: LowRank, expected: tuple[int, ...]) -> None:
    """See that the text is as wide as the bundle's: that is where the models differ."""
    if weight.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
        what = "cross-attention takes text"
    elif ".self_attn." in weight:
        what = "text encoder is"
    else:
        return
    own, width = low_rank.shape[1], expected[1]
    if own != width:
        other = _OTHER_MODELS.get(own, "another model")
        raise RequestError(
            f"{lora.path} was made for {other}: its {what} {own} numbers wide, this bundle's is {width}: "
            "find one for this model"
        )
