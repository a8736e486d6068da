"""Names that shells complete: samplers, schedules."""

from __future__ import annotations


def samplers(incomplete: str) -> list[str]:
    """Samplers by the beginning of their name."""
    from typing import get_args

    from sd2rt.engines.bundle.sampler_config import SamplerName

    return _beginning(incomplete, get_args(SamplerName))


def schedules(incomplete: str) -> list[str]:
    """Schedules by the beginning of their name."""
    from sd2rt.engines.bundle.sampler_config import SCHEDULES

    return _beginning(incomplete, SCHEDULES)


def _beginning(incomplete: str, names: object) -> list[str]:
    assert hasattr(names, "__iter__")
    return [name for name in names if name.startswith(incomplete)]
