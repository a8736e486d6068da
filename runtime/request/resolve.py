"""Resolve a request against a bundle: find its task and fill in the bundle's defaults."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import TASKS, InputName, Task, TaskName, kinds_for
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.request.fields import Images
from sd2rt.runtime.request.presets import PRESETS
from sd2rt.runtime.request.request import Request

_INPUT_NAMES: dict[InputName, str] = {
    "image": "image",
    "mask_image": "mask",
    "depth_map": "depth",
    "noise_level": "noise level",
    "strength": "strength",
    "paste": "paste",
    "resize_mode": "resize mode",
    "only_masked": "only masked",
}
"""Names of inputs in messages, close to both the command-line options and the keyword arguments."""


def task_of(request: Request[Any], manifest: Manifest) -> Task:
    """Return the bundle's task whose inputs match those of the request.

    Raises:
        RequestError: no task matches; the message names the kinds of bundle that can do the task, or the inputs
            that are missing or unused.
    """
    inputs = _inputs(request)
    for name, task in TASKS.items():
        if name in manifest.supported and set(task.required) <= inputs <= {*task.required, *task.optional}:
            return task
    intended = _intended_task(inputs)
    if intended is None or intended.name in manifest.supported:
        raise RequestError(_wrong_inputs(inputs, manifest))
    raise RequestError(_unsupported(manifest, intended.name))


def resolve(request: Request[Images], manifest: Manifest) -> Request[Images]:
    """Fill in a request's unset fields, from its preset first and then from the bundle's defaults.

    Raises:
        RequestError: the bundle does not support the task, the noise level or the clip_skip.
    """
    return fill_defaults(request, task_of(request, manifest), manifest)


def fill_defaults(request: Request[Images], task: Task, manifest: Manifest) -> Request[Images]:
    """Fill in a request's unset fields for a task, from its preset first and then from the bundle's defaults.

    Raises:
        RequestError: the bundle does not support the noise level or the clip_skip.
    """
    defaults = manifest.supported[task.name]
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
    unset = {name: value for name, value in settings.items() if getattr(request, name) is None}
    request = request.model_copy(update=unset)
    level, low = request.noise_level, manifest.low_resolution
    if level is not None and low is not None and level > low.max_noise_level:
        raise RequestError(
            f"noise level is {level}, but {manifest.name} was trained only up to {low.max_noise_level}: "
            f"use {low.max_noise_level} or less"
        )
    layers = manifest.embeddings.layers
    if request.clip_skip is not None and request.clip_skip >= layers:
        raise RequestError(
            f"clip_skip is {request.clip_skip}, but {manifest.name}'s text encoder has only {layers} layers: "
            f"use at most {layers - 1}"
        )
    return request


def require_task(task: TaskName, manifest: Manifest) -> None:
    """Check that a bundle supports a task.

    Raises:
        RequestError: it does not; the message names the kinds of bundle that do.
    """
    if task not in manifest.supported:
        raise RequestError(_unsupported(manifest, task))


def _unsupported(manifest: Manifest, task: TaskName) -> str:
    """Error message for a task that the bundle does not support."""
    offered = [task for name, task in TASKS.items() if name in manifest.supported]
    required = [task.required for task in offered]
    needs = f" (needs {' and '.join(_INPUT_NAMES[name] for name in required[0])})" if all(required) else ""
    kinds = kinds_for(task)
    either = kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    supported = " and ".join(task.name for task in offered) + needs
    return (
        f"{manifest.name} is of kind {manifest.variant}, which supports {supported}: "
        f"{task} needs a bundle of kind {either}"
    )


def _inputs(request: Request[Any]) -> set[InputName]:
    inputs: set[InputName] = {"paste"} if request.paste else set()
    inputs |= {"only_masked"} if request.only_masked else set()
    inputs |= {"resize_mode"} if request.resize_mode != "stretch" else set()
    names: tuple[InputName, ...] = ("image", "mask_image", "depth_map", "noise_level", "strength")
    return inputs | {name for name in names if getattr(request, name) is not None}


def _intended_task(inputs: set[InputName]) -> Task | None:
    """Guess the task from the inputs, even if some are missing."""
    # These belong to several tasks, or to a mask, so they do not identify one.
    distinctive = inputs - {"strength", "paste", "resize_mode", "only_masked"}
    candidates = [task for task in TASKS.values() if distinctive <= {*task.required, *task.optional}]
    complete = (task for task in candidates if set(task.required) <= distinctive)
    return next(complete, next(iter(candidates), None))


def _wrong_inputs(inputs: set[InputName], manifest: Manifest) -> str:
    """Error message for inputs that match no task, where another kind of bundle would not help."""
    offered = [task for name, task in TASKS.items() if name in manifest.supported]
    task = max(offered, key=lambda task: len(inputs & {*task.required, *task.optional}))
    missing = [_INPUT_NAMES[name] for name in task.required if name not in inputs]
    excess = [_INPUT_NAMES[name] for name in sorted(inputs - {*task.required, *task.optional})]
    problems = [f"also needs {' and '.join(missing)}"] if missing else []
    if excess:
        unused = "it" if len(excess) == 1 else "them"
        problems.append(f"does not use {' or '.join(excess)}: leave {unused} out")
    return f"{task.name} with {manifest.name} (kind {manifest.variant}) {', and '.join(problems)}"
