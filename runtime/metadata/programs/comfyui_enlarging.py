"""ComfyUI's nodes that enlarge a picture between two samplers."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.sizes import check_sides
from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.imported import ImportedSettings
from sd2rt.runtime.metadata.programs.comfyui_graph import Graph, Node
from sd2rt.runtime.request.second_pass import EnlargeMethod

ENLARGERS = ("LatentUpscale", "LatentUpscaleBy", "ImageScale", "ImageScaleBy", "ImageUpscaleWithModel")
_LATENT_METHODS: dict[str, EnlargeMethod] = {
    "bilinear": "bilinear",
    "nearest-exact": "nearest-exact",
    "bicubic": "bicubic",
}
_MAX_FACTOR = 64.0


def enlarged(
    graph: Graph, node: Node | None, first: ImportedSettings
) -> tuple[dict[str, int], EnlargeMethod]:
    """Return width and height of the second pass, and the way to enlarge; notes go to ``first``.

    Args:
        node: the node that enlarges; None if the second pass has the size of the first.
        first: settings of the first pass.

    Raises:
        RequestError, ValueError: the size cannot be made.
    """
    if "width" not in first.fields:
        raise ValueError("the size of the first is missing or not supported")
    width, height = first.fields["width"], first.fields["height"]
    if node is None:
        return {"width": width, "height": height}, "nearest"
    if node.kind == "ImageUpscaleWithModel":
        raise ValueError("a model enlarged its picture")
    if "scale_by" in node.inputs:
        factor = graph.value(node, "scale_by")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= _MAX_FACTOR:
            raise ValueError("its factor cannot be read")
        # Latents have an eighth of the sides.
        unit = 8 if node.kind == "LatentUpscaleBy" else 1
        sides = [round(side / unit * factor) * unit for side in (width, height)]
    else:
        sides = [_side(graph.value(node, name)) for name in ("width", "height")]
        sides = [sides[0] or sides[1] * width // height, sides[1] or sides[0] * height // width]
        if graph.value(node, "crop") == "center" and sides[0] * height != sides[1] * width:
            raise ValueError("its picture is cropped, which is not supported")
    check_sides(*sides)
    return {"width": sides[0], "height": sides[1]}, _method(graph, node, first)


def _side(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("its size cannot be read")
    return value


def _method(graph: Graph, node: Node, first: ImportedSettings) -> EnlargeMethod:
    name = str(graph.value(node, "upscale_method"))
    if node.kind.startswith("Latent"):
        if name in _LATENT_METHODS:
            return _LATENT_METHODS[name]
        first.notes.append(
            f"upscale_method {shown(name)} is not available: bilinear is used; the picture differs"
        )
        return "bilinear"
    if name != "lanczos":
        first.notes.append(
            f"upscale_method {shown(name)} is not available: lanczos is used; the picture differs"
        )
    return "lanczos"
