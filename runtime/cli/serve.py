"""`sd2rt serve`: bundles over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from sd2rt.engines.bundle.cache import complete_bundle
from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.install_hint import install_hint
from sd2rt.runtime.cli.serve_options import LimitOptions, ListenOptions, LogOptions, MarkOptions, WorkOptions

_EXTRA = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    listening: ListenOptions,
    work: WorkOptions,
    limits: LimitOptions,
    marks: MarkOptions,
    logs: LogOptions,
    bundles: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUNDLE]...",
            help="Bundles: folders, or names in the cache; default: the demo. Requests choose one by its name.",
            show_default=False,
            autocompletion=complete_bundle,
        ),
    ] = None,
    config_file: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file of settings; options and SD2RT_ variables of the same names override it.",
        ),
    ] = None,
) -> int:
    """Serve images over HTTP: OpenAI's image API, and jobs.

    SIGTERM ends the server once open requests have ended; a second one ends it at once.
    """
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        raise MissingDependencyError(f"{missing[0]} is not installed: {install_hint('server')}")
    from sd2rt.runtime.server.http.bundles import worker_settings
    from sd2rt.runtime.server.http.config import load_config
    from sd2rt.runtime.server.http.front import Front
    from sd2rt.runtime.server.http.http_server import serve as serve_front
    from sd2rt.runtime.server.logs import chosen_format, set_up_logs
    from sd2rt.runtime.server.worker_client import WorkerClient

    options: dict[str, Any] = {"bundle": bundles or []}
    for group in (listening, work, limits, marks, logs):
        options |= group.given()
    config = load_config(options, file=config_file)
    config.check_exposure()
    set_up_logs(chosen_format(config.log_format), config.log_level, "front")
    return serve_front(Front(config, WorkerClient(worker_settings(config))))
