"""What a request asks a bundle for: the task, and everything that the request left to the bundle."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import TASKS, InputName, Task, TaskName, kinds_for
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.request.fields import Images
from sd2rt.runtime.request.presets import PRESETS
from sd2rt.runtime.request.request import Request

_OPTIONS: dict[InputName, str] = {
    "image": "image",
    "mask_image": "mask",
    "depth_map": "depth",
    "noise_level": "noise level",
    "strength": "strength",
    "paste": "paste",
}
"""What messages call the inputs, in words that fit the command line's options and the keywords alike."""


def task_of(request: Request[Any], manifest: Manifest) -> Task:
    """The one of the bundle's tasks that takes what the request gives.

    Raises:
        RequestError: none does; naming the kind of bundle that can, or what is missing.
    """
    given = _given(request)
    for name, task in TASKS.items():
        if name in manifest.tasks and set(task.required) <= given <= {*task.required, *task.optional}:
            return task
    meant = _meant(given)
    if meant is None or meant.name in manifest.tasks:
        raise RequestError(_misfit(given, manifest))
    raise RequestError(_refusal(manifest, meant.name))


def resolve(request: Request[Images], manifest: Manifest) -> Request[Images]:
    """The request with its preset's settings, and then the bundle's defaults, where it left something open.

    Raises:
        RequestError: the bundle does not do what is asked.
    """
    return fill_defaults(request, task_of(request, manifest), manifest)


def fill_defaults(request: Request[Images], task: Task, manifest: Manifest) -> Request[Images]:
    """Fill in a preset's settings, then the bundle's defaults for the task, where the request leaves them open.

    Raises:
        RequestError: the bundle does not support a noise level or a number of layers to skip.
    """
    defaults = manifest.tasks[task.name]
    names = ("num_inference_steps", "guidance_scale", "strength", "noise_level")
    settings: dict[str, Any] = {name: getattr(defaults, name) for name in names}
    if request.preset is not None:
        preset = PRESETS[request.preset]
        settings |= {
            "sampler": preset.sampler,
            "schedule": preset.schedule,
            "num_inference_steps": preset.num_inference_steps,
            "guidance_scale": preset.guidance_scale,
        }
        if (
            preset.late_start is not None
            and defaults.strength is not None
            and not task.noise_at_full_strength
        ):
            settings["num_inference_steps"], settings["strength"] = preset.late_start
    filled = {name: value for name, value in settings.items() if getattr(request, name) is None}
    request = request.model_copy(update=filled)
    level, low = request.noise_level, manifest.low_resolution
    if level is not None and low is not None and level > low.max_noise_level:
        raise RequestError(
            f"noise level is {level}, {manifest.name} was trained up to {low.max_noise_level}: give at most that"
        )
    layers = manifest.embeddings.layers
    if request.clip_skip is not None and request.clip_skip >= layers:
        raise RequestError(
            f"clip_skip is {request.clip_skip}, {manifest.name}'s text encoder has {layers} layers: "
            f"give at most {layers - 1}"
        )
    return request


def refuse_unless(task: TaskName, manifest: Manifest) -> None:
    """Raise RequestError where a bundle does not offer a task, naming the kinds that do."""
    if task not in manifest.tasks:
        raise RequestError(_refusal(manifest, task))


def _refusal(manifest: Manifest, task: TaskName) -> str:
    """What a bundle that does not offer a task answers, naming what it does and the kinds that do."""
    offered = [task for name, task in TASKS.items() if name in manifest.tasks]
    needs = [task.required for task in offered]
    shown = f" (which needs {' and '.join(_OPTIONS[name] for name in needs[0])})" if all(needs) else ""
    kinds = kinds_for(task)
    either = kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    does = " and ".join(task.name for task in offered) + shown
    return f"{manifest.name} is a bundle of kind {manifest.variant}, for {does}; {task} takes one of kind {either}"


def _given(request: Request[Any]) -> set[InputName]:
    given: set[InputName] = {"paste"} if request.paste else set()
    names: tuple[InputName, ...] = ("image", "mask_image", "depth_map", "noise_level", "strength")
    return given | {name for name in names if getattr(request, name) is not None}


def _meant(given: set[InputName]) -> Task | None:
    """The task that inputs like these are for, whether or not they are all there."""
    # Strength and paste belong to several tasks: they do not tell.
    telling = given - {"strength", "paste"}
    fitting = [task for task in TASKS.values() if telling <= {*task.required, *task.optional}]
    return next((task for task in fitting if set(task.required) <= telling), next(iter(fitting), None))


def _misfit(given: set[InputName], manifest: Manifest) -> str:
    """Why none of the bundle's tasks takes what was given, where another kind of bundle would not either."""
    offered = [task for name, task in TASKS.items() if name in manifest.tasks]
    task = max(offered, key=lambda task: len(given & {*task.required, *task.optional}))
    missing = [_OPTIONS[name] for name in task.required if name not in given]
    excess = [_OPTIONS[name] for name in sorted(given - {*task.required, *task.optional})]
    wants = [f"needs {' and '.join(missing)} too"] if missing else []
    wants += [f"has no use for {' and '.join(excess)}: leave that out"] if excess else []
    return f"{task.name} with {manifest.name} (kind {manifest.variant}) {', and '.join(wants)}"
