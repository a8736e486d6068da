"""docs/samplers.md is generated, and must agree with the samplers' registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, SamplerName
from sd2rt.runtime.samplers import SAMPLERS, schedules_of

from .cases import NAMES

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_up_to_date(name: SamplerName) -> None:
    text, sampler = (DOCS / "samplers.md").read_text(), SAMPLERS[name]
    row = f"| [`{name}`](#{name}) | {sampler.title} | {sampler.order} | {sampler.evaluations} | {sampler.noise} |"
    assert row in text, "run make samplers"
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    shown = {*SAMPLER_OPTIONS[name]} - {"spacing", "levels"} | {*schedules_of(name)}
    assert all(f"`{option}`" in section for option in shown), "run make samplers"
    assert (DOCS / "samplers" / f"{name}.png").stat().st_size > 5000
