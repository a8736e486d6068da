"""The LoRAs of a pipeline: which are loaded, and the weights that they leave of a bundle's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.lora.merge import PARTS, Lora, MergedWeights, changes


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
