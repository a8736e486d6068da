"""Merge LoRAs into the weights of a bundle's networks, in float32, independent of their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Array
from sd2rt.engines.lora.change import WeightChange
from sd2rt.engines.lora.file import Lora
from sd2rt.engines.lora.keys import Module, Network
from sd2rt.engines.lora.ldm_names import ldm_names
from sd2rt.engines.printable import shown

Shapes = Mapping[PartName, Mapping[str, tuple[int, ...]]]
"""Shapes of the weights that a LoRA can change, by part and name, in PyTorch's orientation."""

PARTS: dict[Network, PartName] = {"unet": "denoiser", "text_encoder": "text_encoder"}
"""Parts that a LoRA can change, by the name of their network in LoRA files."""

_MAX_LAYERS_SHOWN = 3
_MODEL_BY_WIDTH = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
"""Models by the width of their text encoder."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Sum of the changes that several LoRAs make to one weight."""

    names: tuple[str, ...]
    """Names of the LoRAs, for messages."""
    terms: tuple[tuple[float, WeightChange], ...]
    """Scale and change of each LoRA; each change is of the original weight."""

    def added_to(self, weight: Array, dtype: DTypeLike = np.float32) -> Array:
        """Add the change to a weight in PyTorch's orientation, in float32, and round once to ``dtype``.

        The result has the memory order of the weight.

        Raises:
            RequestError: a sum is not finite, or outside the range of ``dtype``.
        """
        dtype = np.dtype(dtype)
        terms = (change.delta(scale, weight).reshape(weight.shape) for scale, change in self.terms)
        with np.errstate(over="ignore", invalid="ignore"):
            # One term at a time, to limit memory.
            total = next(terms)
            for term in terms:
                total += term
            merged = np.empty_like(weight, np.float32)
            np.add(total, weight, out=merged)
        largest = float(np.finfo(dtype).max)
        # Negated, so that NaN fails too.
        if not (-largest <= merged.min() and merged.max() <= largest):
            raise RequestError(
                f"with {', '.join(self.names)} some weights exceed the range of {dtype}: use a smaller scale"
            )
        return merged.astype(dtype, copy=False)


class MergedWeights(Mapping[str, Array]):
    """Merged weights of a part that LoRAs change, by name; computed on access, and not cached.

    Args:
        read: returns the original weight of a name, in the precision that the merged weight is rounded to.
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
    """Collect the changes of LoRAs by part and weight; the result does not depend on their order, to the bit.

    Raises:
        RequestError: a LoRA was made for another model, or changes layers that the networks do not have; or two
            have the same name.
    """
    names = [lora.name for lora in loras]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two LoRAs are named {name!r}: rename one of them, or omit it")
    terms: dict[PartName, dict[str, list[tuple[Lora, WeightChange]]]] = {}
    # Sorted, since floating-point sums depend on the order.
    for lora in sorted(loras, key=lambda lora: (lora.sha256, lora.scale, lora.text_scale)):
        for (part, weight), change in _match_weights(lora, shapes).items():
            terms.setdefault(part, {}).setdefault(weight, []).append((lora, change))
    return {
        part: {
            weight: Change(
                tuple(lora.name for lora, _ in items),
                tuple((lora.scale_of(part), change) for lora, change in items),
            )
            for weight, items in weights.items()
        }
        for part, weights in terms.items()
    }


def merged_weights(bundle: Bundle, loras: Sequence[Lora]) -> dict[PartName, MergedWeights]:
    """Merged weights of the parts that LoRAs change, by part; computed on access.

    Raises:
        RequestError: a LoRA was made for another model, or two have the same name.
        BundleError: the bundle's map of its weights cannot be read.
    """
    if not loras:
        return {}
    # Imported only here: nothing else in a run needs it, and it is a sixth of the import time.
    from sd2rt.engines.weights.initializers import Weights

    weights = {}
    for part in PARTS.values():
        entry = bundle.manifest.parts[part]
        weights[part] = Weights.in_bundle(bundle, entry)
    by_part = changes(loras, {part: originals.shapes() for part, originals in weights.items()})
    return {part: MergedWeights(weights[part].read, by_weight) for part, by_weight in by_part.items()}


def changed_parts(
    before: Sequence[Lora], after: Sequence[Lora], merged: Mapping[PartName, MergedWeights]
) -> dict[PartName, MergedWeights | None]:
    """Find the parts whose weights change, with their new weights: None for the bundle's own.

    Args:
        merged: the merged weights of ``after``.
    """
    parts: dict[PartName, MergedWeights | None] = {}
    for network, part in PARTS.items():
        used = [
            sorted(
                (lora.sha256, lora.scale_of(part))
                for lora in loras
                if any(module.network == network for module in lora.layers)
            )
            for loras in (before, after)
        ]
        if used[0] != used[1]:
            parts[part] = merged.get(part)
    return parts


def _match_weights(lora: Lora, shapes: Shapes) -> dict[tuple[PartName, str], WeightChange]:
    layers = {part: _Layers(shapes[part]) for part in PARTS.values()}
    matched: dict[tuple[PartName, str], WeightChange] = {}
    unmatched = []
    for module, change in lora.layers.items():
        part = PARTS[module.network]
        weight = layers[part].weight(module)
        if weight is None:
            if not module.optional:
                unmatched.append(str(module))
        elif (part, weight) in matched:
            raise RequestError(
                f"{lora.path} changes {weight} in two key layouts: it is damaged, get it again"
            )
        else:
            matched[part, weight] = change
    # Before unmatched layers are reported: LoRAs of other models have those too, and this error names the model.
    for (part, weight), change in matched.items():
        _check_width(lora, weight, change, shapes[part][weight])
    if unmatched:
        raise RequestError(
            f"{lora.path} changes {len(unmatched)} layers that this bundle's networks do not have, such as "
            f"{', '.join(shown(name, 120) for name in unmatched[:_MAX_LAYERS_SHOWN])}: it was made for another model"
        )
    for (part, weight), change in matched.items():
        expected = shapes[part][weight]
        if not change.fits(expected):
            raise RequestError(
                f"{lora.path} changes {weight} with the shape {list(change.shape)}, "
                f"this bundle's has {list(expected)}: it was made for another model"
            )
    return matched


class _Layers:
    """Names of a network's weights and biases by layer: dotted paths of diffusers and LDM, and both with ``_``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._names = set(shapes)
        paths = dict.fromkeys(name.rpartition(".")[0] for name in shapes)
        self._dotted = {path: path for path in paths} | ldm_names(paths)
        self._flat = {path.replace(".", "_"): layer for path, layer in self._dotted.items()}

    def weight(self, module: Module) -> str | None:
        layer = (self._flat if module.flat else self._dotted).get(module.path)
        name = f"{layer}.{module.parameter}"
        return name if name in self._names else None


def _check_width(lora: Lora, weight: str, change: WeightChange, expected: tuple[int, ...]) -> None:
    """Check the width of the text encoding, by which the models differ."""
    if weight.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
        subject = "cross-attention takes text"
    elif ".self_attn." in weight and weight.endswith(".weight"):
        subject = "text encoder is"
    else:
        return
    if len(change.shape) < 2:
        return
    width, expected_width = change.shape[1], expected[1]
    if width != expected_width:
        other = _MODEL_BY_WIDTH.get(width, "another model")
        raise RequestError(
            f"{lora.path} was made for {other}: its {subject} {width} numbers wide, "
            f"this bundle's is {expected_width}: find one for this model"
        )
