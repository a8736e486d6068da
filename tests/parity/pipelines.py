"""Switch a diffusers pipeline to another task without loading its networks again."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.model_kinds import TaskName
from sd2rt.export.reference import PIPELINES


def other_task(pipeline: Any, task: TaskName) -> Any:
    """The pipeline of another task, with the same networks."""
    if type(pipeline) is PIPELINES[task]:
        return pipeline
    other = PIPELINES[task](**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other
