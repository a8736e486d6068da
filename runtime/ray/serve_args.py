"""Arguments of the Ray Serve application: the server's settings, and those of its deployment."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.server.http.config import NAMED_FILES, ServerConfig, load_config, one_line, parsed

_SPARE_REQUESTS = 64
"""Requests that a replica takes beyond its queue: probes, lists, watched jobs, and those that it refuses by 429."""
_CLOSE_SECONDS = 15.0
"""Time for a worker to end, after the shutdown timeout."""
_PROXY = {
    "host": "http_options.host",
    "port": "http_options.port",
    "metrics_port": "metrics_export_port of Ray",
    "header_timeout": "a proxy in front",
    "write_timeout": "a proxy in front",
    "max_connections": "a proxy in front",
    "keep_alive": "http_options.keep_alive_timeout_s",
}
"""Settings of `sd2rt serve` that are not the application's here, and whose they are."""
_FILES = ("bundle", "api_key_file", "c2pa_cert", "c2pa_key")

Replicas = Annotated[int, Field(ge=1, le=10_000)]
Delay = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class ServeArgs(ServerConfig):
    """Settings of ``sd2rt serve`` but those of its listener, and of Ray's deployment.

    Texts are split by commas where several values are allowed, as in ``serve run ... bundle=demo,demo-x4``. Settings
    that are not given come from ``SD2RT_`` variables of the replica's environment.

    Raises:
        RequestError: a value is invalid; in one line.
    """

    num_replicas: Replicas | None = None
    """A fixed number of replicas; None for one, or for as many as ``max_replicas`` says."""
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] | None = None
    max_replicas: Replicas | None = None
    """Scale with the load up to so many replicas."""
    target_ongoing_requests: Annotated[float, Field(gt=0, le=1e6)] = 4
    """Requests a replica, running and waiting, above which another is started."""
    upscale_delay_s: Delay = 15
    downscale_delay_s: Delay = 300
    num_cpus: Annotated[float, Field(ge=0, le=1024)] = 1
    """CPUs that Ray reserves for a replica. Without ``threads``, a worker on a CPU has as many threads."""
    num_gpus: Annotated[float, Field(ge=0, le=64)] = 0
    """GPUs that Ray reserves for a replica; below 1, replicas share one. Without ``device``, all are used."""
    health_check_period_s: Annotated[float, Field(gt=0, le=3600)] = 2
    max_queued_requests: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Requests that wait in each of Ray's proxies while all replicas are full; more are answered by 429."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping):
            annotations = typing.get_type_hints(cls)
            data = {
                name: parsed(value, annotations.get(name)) if isinstance(value, str) else value
                for name, value in data.items()
            }
        try:
            checked = handler(data)
        except ValidationError as error:
            raise RequestError(one_line(error, {}, cls)) from None
        checked._check()
        return checked

    def _check(self) -> None:
        """Check that fields are consistent.

        Raises:
            RequestError: they are not.
        """
        for name in self.model_fields_set & _PROXY.keys():
            raise RequestError(f"{name} cannot be set for Ray Serve: use {_PROXY[name]}")
        if self.max_replicas is None and self.min_replicas is not None:
            raise RequestError("min_replicas is set and max_replicas is not: set both, or num_replicas")
        if self.max_replicas is not None:
            if self.num_replicas is not None:
                raise RequestError("num_replicas and max_replicas are both set: use one of them")
            if (self.min_replicas or 0) > self.max_replicas:
                raise RequestError(
                    f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}: use at most as many"
                )
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise RequestError(f"num_gpus is {self.num_gpus:g}: use a whole number, or less than 1")
        if not self.num_gpus and any(device != "cpu" for device in self.device):
            raise RequestError("a device is a GPU and num_gpus is 0: set num_gpus, such as 1 or 0.5")

    def server_options(self) -> dict[str, Any]:
        """Return the server's settings that are given here or follow from the deployment's.

        Relative paths become absolute: replicas run elsewhere.
        """
        given = {
            name: getattr(self, name) for name in self.model_fields_set if name in ServerConfig.model_fields
        }
        for name in _FILES:
            if isinstance(value := given.get(name), str):
                given[name] = os.path.abspath(value)
            elif value is not None:
                # A bundle without a separator is a name in the cache of the replica's machine.
                given[name] = [
                    os.path.abspath(each) if name != "bundle" or os.sep in each else each for each in value
                ]
        for name in NAMED_FILES:
            if name in given:
                given[name] = {key: os.path.abspath(path) for key, path in given[name].items()}
        if "device" not in given and self.num_gpus:
            given["device"] = [f"cuda:{index}" for index in range(int(self.num_gpus))] or ["cuda"]
        if "threads" not in given and set(given.get("device", ["cpu"])) == {"cpu"}:
            given["threads"] = max(1, int(self.num_cpus))
        return given

    def deployment_options(self) -> dict[str, Any]:
        """Return keyword arguments of :func:`ray.serve.deployment`.

        Raises:
            RequestError: a setting in the environment is invalid, or strangers could use the application.
        """
        config = load_config(self.server_options())
        check_keys(config)
        options: dict[str, Any] = {
            "name": "sd2rt",
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
            "max_ongoing_requests": len(config.device) * config.max_queue + _SPARE_REQUESTS,
            "max_queued_requests": self.max_queued_requests,
            "backpressure_config": {"status_code": 429, "retry_after_s": 5},
            "health_check_period_s": self.health_check_period_s,
            "graceful_shutdown_timeout_s": config.shutdown_timeout + _CLOSE_SECONDS,
            "graceful_shutdown_wait_loop_s": 0.5,
            "max_constructor_retry_count": 3,
        }
        if self.max_replicas is None:
            return options | {"num_replicas": self.num_replicas or 1}
        return options | {
            "autoscaling_config": {
                "min_replicas": 1 if self.min_replicas is None else self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
                "upscale_delay_s": self.upscale_delay_s,
                "downscale_delay_s": self.downscale_delay_s,
            }
        }


def check_keys(config: ServerConfig) -> None:
    """Check that an operator has decided who may use the application: Ray's proxies may listen anywhere.

    Raises:
        RequestError: there is neither a key nor ``no_auth``, or both.
    """
    has_keys = bool(config.api_key or config.api_key_file)
    if not has_keys and not config.no_auth:
        raise RequestError(
            "no API key is set: set api_key_file or SD2RT_API_KEY, or allow everybody who can reach Ray's proxies "
            "with no_auth=true"
        )
    if has_keys and config.no_auth:
        raise RequestError("no_auth is set and so are keys: leave one out")
