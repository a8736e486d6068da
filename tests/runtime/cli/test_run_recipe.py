"""Options of `sd2rt run`, and the fields of a recipe that they replace."""

from __future__ import annotations

import inspect

from sd2rt.engines.option_groups import expand_groups
from sd2rt.runtime.cli.run import run
from sd2rt.runtime.cli.run_recipe import FIELDS
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
    own |= {"file_format", "quality", "no_metadata", "preview"}
    names = set(inspect.signature(expand_groups(run)).parameters)
    for name in names - own:
        assert set(FIELDS.get(name, (name,))) & set(Request.model_fields), name
    assert set(FIELDS) <= names
