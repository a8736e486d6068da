"""Options of `sd2rt run`, and the fields of a recipe that they replace."""

from __future__ import annotations

import inspect

from sd2rt.engines.option_groups import expand_groups
from sd2rt.runtime.cli.run import run
from sd2rt.runtime.cli.run_recipe import FIELDS, AppliedRecipe, RunSettings
from sd2rt.runtime.metadata.recipe import Recipe
from sd2rt.runtime.request.request import Request


def test_options_are_known_by_the_fields_that_they_are_for() -> None:
    """An option that is no field's name has to say in FIELDS which ones it sets."""
    own = {
        "context",
        "words",
        "recipe_of",
        "save_depth",
        "upscale",
        "count",
        "output",
        "device",
        "backend",
        "precision",
        "threads",
        "allow_cpu_fallback",
        "tile",
    }
    own |= {"as_json", "quiet", "embedding", "allow_pickle", "lora", "lora_dir"}
    own |= {"file_format", "quality", "safety", "no_metadata", "watermark", "c2pa_cert", "c2pa_key"}
    own |= {"preview", "hires"}
    names = set(inspect.signature(expand_groups(run)).parameters)
    for name in names - own:
        assert set(FIELDS.get(name, (name,))) & set(Request.model_fields), name
    assert set(FIELDS) <= names


def test_another_grid_drops_the_schedule_type_of_the_recipes_grid() -> None:
    fields = {"prompt": "a fox", "sampler": "euler", "grid": "a1111", "schedule": "sgm-uniform"}
    for options in ({"grid"}, {"timesteps"}, {"sigmas"}):
        settings = RunSettings("demo", [], {}, 1, None, None, None)
        AppliedRecipe(Recipe("fox.png", dict(fields)), settings, options)
        assert settings.fields == {"sampler": "euler"}
    settings = RunSettings("demo", [], {}, 1, None, None, None)
    AppliedRecipe(Recipe("fox.png", dict(fields)), settings, {"steps"})
    assert settings.fields == {"sampler": "euler", "grid": "a1111", "schedule": "sgm-uniform"}
