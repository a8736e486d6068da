"""Options of opening a pipeline, as type checkers know them."""

from __future__ import annotations

import inspect
from typing import get_type_hints

from sd2rt.runtime import Pipeline
from sd2rt.runtime.pipeline.opening import OpeningOptions


def test_options_are_those_of_the_call() -> None:
    """AsyncPipeline.open passes them on."""
    hints = get_type_hints(Pipeline.open)
    parameters = inspect.signature(Pipeline.open).parameters.values()
    named = {each.name: hints[each.name] for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert get_type_hints(OpeningOptions) == named
