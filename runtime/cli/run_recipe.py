"""`sd2rt run --from`: take the options that were not given from an image's recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.engines.lora.file import Lora
    from sd2rt.runtime.metadata.recipe import Recipe
    from sd2rt.runtime.prompts.textual_inversion import Embedding
    from sd2rt.runtime.request.request import Request
    from sd2rt.runtime.request.second_pass import SecondPass
    from sd2rt.runtime.rows.lora_tags import LoraFolder

FIELDS: dict[str, tuple[str, ...]] = {
    "negative": ("negative_prompt",),
    "mask": ("mask_image",),
    "depth": ("depth_map",),
    "steps": ("num_inference_steps", "timesteps", "sigmas"),
    "guidance": ("guidance_scale",),
    "rescale": ("guidance_rescale",),
    "preset": (
        "preset",
        "sampler",
        "sampler_options",
        "schedule",
        "grid",
        "num_inference_steps",
        "guidance_scale",
        "strength",
        "timesteps",
        "sigmas",
    ),
    "sampler": ("sampler", "sampler_options"),
    "sampler_option": ("sampler_options",),
    "timesteps": ("timesteps", "sigmas", "grid"),
    "sigmas": ("timesteps", "sigmas", "grid"),
    "zero_snr": ("rescale_betas_zero_snr",),
    "variation": ("variation_seed", "variation_strength"),
    "size": ("width", "height"),
}
"""Request fields that an option overrides in a recipe, if they differ from the option's name."""


@dataclass(slots=True)
class RunSettings:
    """Settings of a run; a recipe fills those that the command line leaves None, and empty prompts."""

    bundle: str | None
    prompts: list[str] | None
    """Empty if none is given; None to read them from standard input."""
    fields: dict[str, Any]
    """Request fields, without prompts and seeds."""
    seed: int | None
    tile: int | None
    upscaler: str | None
    noise_level: int | None
    """Noise level of the upscaler, if there is one."""
    hires: bool = True
    """Make the second pass of a recipe."""
    second_pass: SecondPass | None = None
    """Pass over the enlarged pictures, if there is one."""


class AppliedRecipe:
    """A recipe applied to a run's settings, with the notes to print about it.

    Args:
        options: names of the options given on the command line, which override the recipe.

    Raises:
        RequestError: the recipe's bundle is needed, but is not in the cache.
    """

    def __init__(self, recipe: Recipe, settings: RunSettings, options: set[str]) -> None:
        self._recipe = recipe
        replaced = {field for option in options for field in FIELDS.get(option, (option,))}
        if "grid" in replaced and recipe.fields.get("grid") == "a1111":
            # Its schedule types are not schedules of other grids.
            replaced.add("schedule")
        fields = {name: value for name, value in recipe.fields.items() if name not in replaced}
        prompt, seed = fields.pop("prompt", ""), fields.pop("seed", None)
        settings.fields |= fields
        self._replaced_inputs: set[str] = set()
        if "negative_prompt" in replaced:
            self._replaced_inputs.add("negative_prompt_embeds")
        prompts = settings.prompts
        self._mistyped = settings.bundle is None and bool(prompts and len(prompts[0].split()) == 1)
        if prompts == []:
            settings.prompts = [prompt]
        else:
            self._replaced_inputs.add("prompt_embeds")
        if settings.bundle is None:
            settings.bundle = str(recipe.bundle_path())
        if settings.seed is None:
            settings.seed = seed
        if settings.tile is None:
            settings.tile = recipe.tile
        self._left_out = ""
        if recipe.second_pass is not None:
            self._apply_second_pass(recipe.second_pass, settings, replaced)
        if recipe.upscaled is not None and settings.upscaler is None:
            settings.upscaler = str(recipe.upscaled.bundle_path())
            if settings.noise_level is None:
                settings.noise_level = recipe.upscaled.fields.get("noise_level")
            settings.fields["noise_level"] = None

    def _apply_second_pass(self, second: SecondPass, settings: RunSettings, replaced: set[str]) -> None:
        """Make the second pass too, unless its size or its start are no longer those of the recipe."""
        if "image" in replaced or settings.upscaler is not None or not settings.hires:
            self._left_out = "the second pass (hires fix) is left out"
            return
        if replaced & {"width", "height"}:
            self._left_out = "the second pass (hires fix) is left out: its size goes with that of the first"
            return
        fields = {name: value for name, value in second.fields.items() if name not in replaced}
        # A strength is the second pass's: the first starts from noise.
        strength = settings.fields.pop("strength", None) if "strength" in replaced else None
        fields["strength"] = second.fields["strength"] if strength is None else strength
        settings.second_pass = dataclasses.replace(second, fields=fields)
        if second.on_latents:
            settings.fields["output_type"] = "latent"

    def named_loras(self, folder: LoraFolder | None, given: Sequence[str] | None) -> list[str]:
        """Return the words for ``--lora`` of the recipe's LoRAs that a folder has; none if LoRAs were given."""
        if folder is None or given:
            return []
        from sd2rt.runtime.rows.lora_tags import lora_word

        return [
            lora_word(path, lora.scale, lora.scale if lora.text_scale is None else lora.text_scale)
            for lora in self._recipe.loras
            if lora.scale is not None and (path := folder.find(lora.name)) is not None
        ]

    def request_notes(self, request: Request[Any]) -> list[str]:
        """Notes on settings that cannot be honoured, and on inputs that differ from the recipe's.

        Raises:
            RequestError: an input that the picture was made from is missing.
        """
        notes = [*self._recipe.notes, *self._recipe.check_inputs(request, self._replaced_inputs)]
        if self._left_out:
            notes.append(self._left_out)
        if self._mistyped:
            notes.append(f"{request.prompt!r} is not a bundle: it is used as the prompt")
        return notes

    def bundle_notes(
        self,
        manifest: Manifest,
        upscaler: Manifest | None,
        embeddings: Sequence[Embedding],
        loras: Sequence[Lora],
    ) -> list[str]:
        """Notes on bundles, embeddings and LoRAs that differ from the recipe's."""
        recipe = self._recipe
        notes = recipe.bundle_notes(manifest)
        notes += recipe.embedding_notes(
            {name: each.sha256 for each in embeddings for name in (each.token, each.a1111_name)}
        )
        notes += recipe.lora_notes(loras)
        if upscaler is not None and recipe.upscaled is not None:
            notes += recipe.upscaled.bundle_notes(upscaler)
        return notes
