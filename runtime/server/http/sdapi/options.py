"""AUTOMATIC1111's options: choices of a caller, for its own requests alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import ModelInfo, OutputFormat

_CALLERS = 10_000
"""Callers whose options are kept."""
MAX_LAYERS = 12
FORMATS: dict[str, OutputFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
GENERATORS: dict[str, Literal["cpu", "cuda"]] = {"CPU": "cpu", "GPU": "cuda", "NV": "cuda"}
NO_VAE = ("Automatic", "None", "", None)

FIXED: dict[str, Any] = {
    "sd_vae": "Automatic",
    "sd_checkpoints_limit": 1,
    "sd_lora": "None",
    "samples_save": False,
    "grid_save": False,
    "return_grid": False,
    "do_not_show_images": False,
    "live_previews_enable": True,
    "show_progress_every_n_steps": 1,
    "face_restoration": False,
    "img2img_background_color": "#ffffff",
    "initial_noise_multiplier": 1.0,
    "eta_noise_seed_delta": 0,
    "token_merging_ratio": 0.0,
    "upcast_attn": False,
}
"""Options that have one value here. Clients send all that they got, so that value is taken."""


@dataclass(frozen=True, slots=True)
class Options:
    """Choices of a caller."""

    model: str | None = None
    clip_stop: int | None = None
    """Layers from the end at which the text encoder stops; 1 skips none."""
    file_format: OutputFormat | None = None
    generator: str | None = None
    """Of random numbers, in AUTOMATIC1111's words."""

    @property
    def rng(self) -> str | None:
        return None if self.generator is None else GENERATORS[self.generator]

    def changed(self, values: Mapping[str, Any], models: Mapping[str, ModelInfo], field: str) -> Options:
        """Return the options with others in their place.

        Args:
            values: by AUTOMATIC1111's names; null leaves an option as it is.
            models: that are served.
            field: of the request that has the values, for messages.

        Raises:
            ServerError: ``not_supported``, ``invalid_value`` or ``model_not_found``.
        """
        changed = self
        for name, value in values.items():
            match name:
                case "sd_model_checkpoint":
                    if value not in (None, ""):
                        changed = replace(changed, model=find_checkpoint(models, value, name).id)
                case "CLIP_stop_at_last_layers":
                    if value is not None:
                        changed = replace(changed, clip_stop=_layers(value, most_layers(models.values())))
                case "samples_format":
                    if value is not None:
                        changed = replace(changed, file_format=FORMATS[_word(name, value, FORMATS)])
                case "randn_source":
                    if value is not None:
                        changed = replace(changed, generator=_word(name, value, GENERATORS))
                case "sd_checkpoint_hash":
                    # It follows from the checkpoint; clients send it back as they got it.
                    pass
                case "sd_vae":
                    if value not in NO_VAE:
                        raise _refused(name, value, "Automatic")
                case _ if name in FIXED:
                    if value is not None and not _same(value, FIXED[name]):
                        raise _refused(name, value, FIXED[name])
                case _:
                    raise ServerError(
                        "not_supported",
                        f"{field} has {shown(name)!r}, which cannot be set here: GET /sdapi/v1/options lists "
                        "what can",
                        param=shown(name),
                    )
        return changed

    def shown(self, models: Mapping[str, ModelInfo]) -> dict[str, Any]:
        """Return all options by AUTOMATIC1111's names."""
        model = models.get(self.model or "") or next(iter(models.values()))
        formats = {own: name for name, own in reversed(FORMATS.items())}
        return {
            "sd_model_checkpoint": title_of(model),
            "sd_checkpoint_hash": model.identity,
            "CLIP_stop_at_last_layers": self.clip_stop or 1,
            "samples_format": formats[self.file_format or "png"],
            "randn_source": self.generator or "CPU",
            **FIXED,
        }


class OptionStore:
    """Options by caller; those who have not been there for longest are forgotten."""

    def __init__(self) -> None:
        self._options: OrderedDict[str | None, Options] = OrderedDict()

    def get(self, caller: str | None) -> Options:
        return self._options.get(caller, Options())

    def put(self, caller: str | None, options: Options) -> None:
        self._options.pop(caller, None)
        self._options[caller] = options
        if len(self._options) > _CALLERS:
            self._options.popitem(last=False)


def title_of(model: ModelInfo) -> str:
    """Return a model's title, as AUTOMATIC1111 makes it: name and ten digits of its hash."""
    return f"{model.id} [{model.identity[:10]}]"


def find_checkpoint(models: Mapping[str, ModelInfo], name: object, field: str) -> ModelInfo:
    """Return a model by its title, name or hash, in any case.

    Raises:
        ServerError: ``model_not_found``, or ``invalid_value`` if it is no text.
    """
    if not isinstance(name, str):
        raise ServerError("invalid_value", f"{field} is {shown(repr_of(name))}: use a title", param=field)
    wanted = name.strip().casefold()
    for model in models.values():
        known = (model.id, title_of(model), model.identity, model.identity[:10])
        if wanted in (each.casefold() for each in known):
            return model
    raise ServerError(
        "model_not_found",
        f"no checkpoint is named {shown(name)!r}: this server has {', '.join(models)}",
        param=field,
    )


def most_layers(models: Iterable[ModelInfo]) -> int:
    """Return the largest CLIP_stop_at_last_layers that all models have."""
    return min([MAX_LAYERS, *(model.text_layers for model in models)])


def _layers(value: object, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ServerError(
            "invalid_value",
            f"CLIP_stop_at_last_layers is {shown(repr_of(value))}: use 1 to {most}",
            param="CLIP_stop_at_last_layers",
        )
    return value


def _word(name: str, value: object, words: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or value not in words:
        raise ServerError(
            "invalid_value", f"{name} is {shown(repr_of(value))}: use {', '.join(words)}", param=name
        )
    return value


def _same(value: object, fixed: object) -> bool:
    return value == fixed and isinstance(value, bool) == isinstance(fixed, bool)


def _refused(name: str, value: object, only: object) -> ServerError:
    return ServerError(
        "not_supported",
        f"{name} is {shown(repr_of(value))}, and cannot be changed here from {only}",
        param=name,
    )
