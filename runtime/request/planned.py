"""Requests resolved and planned for one bundle: task, defaults and sampling steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import Task
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.runtime.request.fields import Images
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.request.resolve import fill_defaults, task_of
from sd2rt.runtime.request.sampling import plan_of, strength_of
from sd2rt.runtime.samplers.plan import Plan


@dataclass(frozen=True, slots=True)
class PlannedRequest(Generic[Images]):
    """A request resolved and planned from a bundle's manifest."""

    request: Request[Images]
    """The request with its preset's settings and the bundle's defaults filled in."""
    task: Task
    plan: Plan
    build_key: str
    """Build key of the bundle. Other bundles have other defaults and need another plan."""

    @property
    def strength(self) -> float | None:
        """Strength of the late start, above 0 and up to 1; None if sampling starts from pure noise."""
        return strength_of(self.request, self.task)


def plan_requests(requests: Sequence[Request[Images]], manifest: Manifest) -> list[PlannedRequest[Images]]:
    """Resolve and plan requests.

    Raises:
        RequestError: the bundle does not support a request.
        BundleError: the bundle's own defaults cannot be sampled.
    """
    planned: list[PlannedRequest[Images]] = []
    for request in requests:
        task = task_of(request, manifest)
        resolved: Request[Any] = fill_defaults(request, task, manifest)
        try:
            plan = plan_of(resolved, task, manifest)
        except RequestError:
            _check_defaults(task, manifest)
            raise
        planned.append(PlannedRequest(resolved, task, plan, manifest.build_key))
    return planned


def _check_defaults(task: Task, manifest: Manifest) -> None:
    """Check that a request without options can be planned: if not, the bundle is at fault, not the request.

    Raises:
        BundleError: it cannot.
    """
    try:
        plan_of(fill_defaults(Request(prompt=""), task, manifest), task, manifest)
    except RequestError as error:
        raise BundleError(
            f"{manifest.name} cannot be sampled with its own defaults ({error}): build the bundle again"
        ) from None
