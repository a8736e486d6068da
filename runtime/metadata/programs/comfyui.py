"""Translate ComfyUI's graphs: from the saved image back to its sampler, and on to all that the sampler used."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.imported import ImportedSettings, file_stem
from sd2rt.runtime.metadata.programs.comfyui_enlarging import ENLARGERS, enlarged
from sd2rt.runtime.metadata.programs.comfyui_graph import Graph, Node
from sd2rt.runtime.metadata.programs.comfyui_prompts import Prompts
from sd2rt.runtime.metadata.programs.k_diffusion_names import add_sampler, add_start
from sd2rt.runtime.request.second_pass import SecondPass

_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_SAMPLER_INPUTS = {"steps", "cfg", "sampler_name"}
"""Inputs that samplers of extensions have too."""
_SHOWN_ALONE = (
    "SaveImage",
    "PreviewImage",
    "SaveAnimatedWEBP",
    "SaveAnimatedPNG",
    "VAEDecode",
    "VAEDecodeTiled",
)
"""Nodes after a sampler that do not change its picture."""
_CHECKPOINTS = ("ckpt_name", "unet_name", "model_name")
_LATENTS = ("pixels", "samples", "image", "images", "latent", "latent_image")
"""Inputs that a picture or its latents pass through."""
_OPTIONAL = ("schedule", "sampler_options")
_MASKS = ("SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning")
_SD2_LAYER = -2
"""Layer of the text encoder that SD2 ends at."""
_MAX_CHAIN = 100


def read_comfyui(text: str) -> ImportedSettings:
    """Translate a graph, the chunk ``prompt``.

    Raises:
        ValueError: it is not a graph, or has no sampler.
    """
    graph = Graph(text)
    settings = ImportedSettings("ComfyUI")
    path = _path_to_sampler(graph)
    if not path:
        raise ValueError("its graph has no sampler that is known")
    for node in path[:-1]:
        if node.kind not in _SHOWN_ALONE and not node.kind.startswith("Save"):
            settings.notes.append(f"{shown(node.kind)} after the sampler is not applied")
    last = _Sampler(graph, settings, path[-1])
    last.read()
    return settings if last.before is None else _two_passes(graph, settings, last)


def _two_passes(graph: Graph, settings: ImportedSettings, last: _Sampler) -> ImportedSettings:
    """Settings of the sampler before, with those of the last one as its second pass."""
    assert last.before is not None
    first_settings = ImportedSettings(settings.program)
    first = _Sampler(graph, first_settings, last.before)
    first.read()
    first_settings.notes += [note for note in settings.notes if note not in first_settings.notes]
    if first.before is not None:
        first_settings.notes.append("the picture had more than two passes: only the last two are made")
        first_settings.from_image = True
        return first_settings
    missing = {
        name: None for name in first_settings.fields if name in _OPTIONAL and name not in settings.fields
    }
    changed = {
        name: value
        for name, value in (missing | settings.fields).items()
        if name not in first_settings.fields or first_settings.fields[name] != value
    }
    try:
        size, method = enlarged(graph, last.enlarger, first_settings)
    except (RequestError, ValueError) as error:
        first_settings.notes.append(f"the second pass is left out: {error}")
    else:
        changed["strength"] = settings.fields.get("strength", 1.0)
        first_settings.second_pass = SecondPass(method, changed | size)
    first_settings.text_scales = settings.text_scales | first_settings.text_scales
    first_settings.loras += [lora for lora in settings.loras if lora not in first_settings.loras]
    return first_settings


def _is_sampler(node: Node) -> bool:
    return node.kind in _SAMPLERS or node.inputs.keys() >= _SAMPLER_INPUTS


def _path_to_sampler(graph: Graph) -> list[Node]:
    """Path from a node that shows an image to its sampler; from the last sampler if none shows any."""
    sinks = [node for node in graph.nodes.values() if "images" in node.inputs]
    sinks.sort(key=lambda node: not node.kind.startswith("Save"))
    paths = (graph.path_to(node, _is_sampler) for node in sinks)
    found = next((path for path in paths if path), None)
    if found is not None:
        return found
    samplers = [node for node in graph.nodes.values() if _is_sampler(node)]
    feeding = {
        path[-1].id
        for node in samplers
        for source in graph.upstream(node)
        if (path := graph.path_to(source, _is_sampler))
    }
    return next(([node] for node in samplers if node.id not in feeding), [])


class _Sampler:
    """One sampler node, with all that leads to it."""

    def __init__(self, graph: Graph, settings: ImportedSettings, node: Node) -> None:
        self._graph = graph
        self._settings = settings
        self._node = node
        self._first = self._first_of(node)
        """The same, or the one that began the run which it continues."""
        self._prompts = Prompts(graph, settings)
        self.before: Node | None = None
        """Another sampler, whose picture this one starts from."""
        self.enlarger: Node | None = None
        """Node that enlarged that picture."""

    def read(self) -> None:
        """Fill the settings."""
        settings = self._settings
        guided = self._guider()
        settings.fields |= {"prompt_syntax": "a1111", "rng": "cpu"}
        settings.fields["prompt"] = self._prompts.read(
            guided, "positive" if "positive" in guided.inputs else "conditioning"
        )
        settings.fields["negative_prompt"] = self._prompts.read(guided, "negative")
        settings.add_number("cfg", "guidance_scale", self._graph.value(guided, "cfg"), float)
        if guided.kind == "BasicGuider":
            settings.fields["guidance_scale"] = 1.0
        self._read_latents()
        self._read_steps()
        settings.add_number("seed", "seed", self._seed(), int)
        self._read_model(guided)
        if not settings.from_image and settings.fields.get("grid") == "a1111":
            settings.notes.append(
                "ComfyUI starts from noise that is stronger by 0.2 % than in the grid a1111: the picture is close, "
                "not the same"
            )

    def _guider(self) -> Node:
        """Node with the prompts and the guidance scale."""
        guider = self._graph.source(self._node, "guider")
        return self._node if guider is None else guider

    def _first_of(self, node: Node) -> Node:
        """Sampler that began a run: one of its steps may leave the rest, with the noise, to another."""
        before = self._graph.source(node, "latent_image")
        if (
            node.kind != "KSamplerAdvanced"
            or self._graph.value(node, "add_noise") != "disable"
            or before is None
            or before.kind != "KSamplerAdvanced"
        ):
            return node
        differing = [
            name
            for name in ("model", "positive", "negative", "steps", "cfg", "sampler_name", "scheduler")
            if before.inputs.get(name) != node.inputs.get(name)
        ]
        if differing:
            self._settings.notes.append(
                f"the first steps were made with another {', '.join(differing)}: those of the last ones are used"
            )
        return before

    def _seed(self) -> Any:
        noise = self._graph.source(self._first, "noise")
        for node in (self._first,) if noise is None else (noise, self._first):
            for name in ("seed", "noise_seed"):
                if name in node.inputs:
                    return self._graph.value(node, name)
        return None

    def _read_steps(self) -> None:
        graph, settings, node = self._graph, self._settings, self._node
        chosen = graph.source(node, "sampler")
        name = graph.value(node if chosen is None else chosen, "sampler_name")
        if chosen is not None and name is None:
            name = chosen.kind
        scheduling = node
        if (sigmas := graph.source(node, "sigmas")) is not None:
            scheduling = sigmas
        scheduler = graph.value(scheduling, "scheduler")
        if scheduler is None and sigmas is not None:
            scheduler = _SIGMAS.get(sigmas.kind, sigmas.kind)
        add_sampler(settings, name, scheduler)
        steps = graph.value(scheduling, "steps")
        denoise = graph.value(scheduling, "denoise")
        add_start(settings, steps, denoise)
        if node.kind == "KSamplerAdvanced":
            self._read_share(steps)
        if not settings.from_image and isinstance(denoise, int | float) and denoise < 1:
            settings.notes.append(f"denoise {denoise:g} from an empty image is not supported and is ignored")

    def _read_share(self, steps: Any) -> None:
        """Steps that a KSamplerAdvanced made of all: only the last ones of a start from an image are supported."""
        graph, settings = self._graph, self._settings
        start = graph.value(self._first, "start_at_step")
        end = graph.value(self._node, "end_at_step")
        if graph.value(self._first, "add_noise") == "disable":
            settings.notes.append("add_noise: disable is not supported: noise is added")
        if isinstance(end, int) and isinstance(steps, int) and end < steps:
            settings.notes.append(f"end_at_step {end} is not supported: all steps are made")
        if not (isinstance(start, int) and isinstance(steps, int) and 0 < start < steps):
            return
        if settings.from_image:
            settings.fields["strength"] = (steps - start - 0.5) / steps
        else:
            settings.notes.append(
                f"start_at_step {start} is not supported without an image: all steps are made"
            )

    def _read_latents(self) -> None:
        """Follow the latents that the sampler starts from."""
        graph, settings = self._graph, self._settings
        node = graph.source(self._first, "latent_image")
        for _ in range(_MAX_CHAIN):
            if node is None:
                settings.notes.append("the size cannot be read: the bundle's default is used")
                return
            if _is_sampler(node):
                self.before = node
                settings.from_image = True
                return
            if node.kind in ENLARGERS and self.enlarger is None:
                self.enlarger = node
                node = next((each for name in _LATENTS if (each := graph.source(node, name))), None)
                continue
            if node.kind.startswith("Empty") or {"width", "height"} <= node.inputs.keys() <= {
                "width",
                "height",
                "batch_size",
                "color",
            }:
                settings.add_size("size", graph.value(node, "width"), graph.value(node, "height"))
                batch = graph.value(node, "batch_size")
                if isinstance(batch, int) and batch > 1:
                    settings.notes.append(
                        f"batch_size {batch}: the first picture is made, whichever this one is"
                    )
                return
            if node.kind in _MASKS:
                settings.masked = True
            elif node.kind.startswith("LoadImage"):
                settings.from_image = True
                if self.enlarger is not None:
                    settings.notes.append(f"{shown(self.enlarger.kind)} of the input image is not applied")
                return
            elif not node.kind.startswith(("VAEEncode", "VAEDecode")):
                settings.notes.append(f"{shown(node.kind)} before the sampler is not applied")
            node = next((each for name in _LATENTS if (each := graph.source(node, name))), None)

    def _read_model(self, guided: Node) -> None:
        """Follow the model, and the text encoder of the prompt, to their checkpoint."""
        graph, settings = self._graph, self._settings
        start = next((node for node in (guided, self._node) if "model" in node.inputs), None)
        node = None if start is None else graph.source(start, "model")
        loras: list[str] = []
        for _ in range(_MAX_CHAIN):
            if node is None:
                break
            name = next((graph.value(node, key) for key in _CHECKPOINTS if key in node.inputs), None)
            if name is not None:
                settings.model = file_stem(name)
                break
            if "lora_name" in node.inputs:
                self._add_lora(node, loras)
            else:
                settings.notes.append(f"{shown(node.kind)} of the model is not applied")
            node = graph.source(node, "model")
        self._read_text_encoder(loras)
        decoder = next((each for each in graph.nodes.values() if each.kind.startswith("VAEDecode")), None)
        vae = None if decoder is None else graph.source(decoder, "vae")
        if vae is not None and vae.kind == "VAELoader":
            settings.note_ignored("VAE", graph.value(vae, "vae_name"))

    def _add_lora(self, node: Node, loras: list[str]) -> None:
        graph, settings = self._graph, self._settings
        name = file_stem(graph.value(node, "lora_name"))
        scale, text_scale = graph.value(node, "strength_model"), graph.value(node, "strength_clip")
        if name is None:
            settings.notes.append(f"{shown(node.kind)} of the model is not applied: its file cannot be read")
            return
        loras.append(node.id)
        if "strength_clip" not in node.inputs:
            # LoraLoaderModelOnly.
            text_scale = 0
        known = all(
            isinstance(each, int | float) and not isinstance(each, bool) for each in (scale, text_scale)
        )
        settings.loras.append((name, float(scale) if known else None))
        if known and text_scale != scale:
            settings.text_scales[name] = float(text_scale)

    def _read_text_encoder(self, loras: list[str]) -> None:
        """Follow the text encoder of the first prompt, for its last layer."""
        graph, settings = self._graph, self._settings
        node = next((graph.source(each, "clip") for each in self._prompts.text_nodes), None)
        for _ in range(_MAX_CHAIN):
            if node is None or any(key in node.inputs for key in (*_CHECKPOINTS, "clip_name")):
                return
            layer = graph.value(node, "stop_at_clip_layer")
            if isinstance(layer, int) and layer < _SD2_LAYER:
                settings.add_number("stop_at_clip_layer", "clip_skip", _SD2_LAYER - layer, int)
            elif isinstance(layer, int) and layer > _SD2_LAYER:
                settings.notes.append(f"stop_at_clip_layer {layer} is not available: {_SD2_LAYER} is used")
            elif layer is None and node.id not in loras:
                settings.notes.append(f"{shown(node.kind)} of the text encoder is not applied")
            node = graph.source(node, "clip")


_SIGMAS = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "polyexponential",
    "BetaSamplingScheduler": "beta",
    "AlignYourStepsScheduler": "align_your_steps",
}
"""Schedulers of nodes that have no choice of one."""
