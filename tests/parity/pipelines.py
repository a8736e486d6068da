"""diffusers' pipelines that share their networks."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.model_kinds import TaskName
from sd2rt.export.reference import PIPELINES


def other_task(pipeline: Any, task: TaskName) -> Any:
    """The same networks in the pipeline of another task."""
    if type(pipeline) is PIPELINES[task]:
        return pipeline
    other = PIPELINES[task](**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other
