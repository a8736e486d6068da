"""The server as an application of Ray Serve: ``serve run sd2rt.runtime.ray.serve:build_app bundle=demo``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.install_hint import install_hint
from sd2rt.runtime.ray.serve_args import ServeArgs

if TYPE_CHECKING:
    from ray.serve import Application

_NEEDED = ("ray.serve", "starlette", "uvicorn", "python_multipart", "prometheus_client")


def build_app(args: ServeArgs | Mapping[str, Any]) -> Application:
    """Build the application, for :func:`ray.serve.run`, ``serve run`` or a configuration file's ``import_path``.

    Nothing is loaded and no bundle is looked for: replicas do that, on their machines.

    Args:
        args: settings; a mapping is validated as one of :class:`ServeArgs`.

    Raises:
        RequestError: a setting is invalid, or neither a key nor ``no_auth`` is set.
        MissingDependencyError: Ray Serve or a package of the server is missing.
    """
    for name in _NEEDED:
        if not _is_installed(name):
            raise MissingDependencyError(f"{name} is not installed: {install_hint('ray')}")
    checked = args if isinstance(args, ServeArgs) else ServeArgs.model_validate(dict(args))
    options = checked.deployment_options()
    from ray import serve

    from sd2rt.runtime.ray.replica import Replica

    return serve.deployment(**options)(serve.ingress()(Replica)).bind(checked.server_options())


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
