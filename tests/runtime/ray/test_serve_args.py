"""Arguments of the application, without Ray."""

from __future__ import annotations

import os
from typing import Any

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.ray.serve_args import ServeArgs

OPEN = {"no_auth": "true"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_queue": "many"}, "max_queue is 'many': input should be a valid integer"),
        ({"steps": 3}, "unknown setting steps: choose from bundle,"),
        ({"port": 80}, "port cannot be set for Ray Serve: use http_options.port"),
        ({"device": "gpu"}, "device is 'gpu': use cpu, cuda or cuda:N"),
        ({"device": "cuda"}, "a device is a GPU and num_gpus is 0: set num_gpus"),
        ({"num_gpus": 1.5}, "num_gpus is 1.5: use a whole number, or less than 1"),
        ({"num_replicas": 2, "max_replicas": 3}, "num_replicas and max_replicas are both set"),
        ({"min_replicas": 2}, "min_replicas is set and max_replicas is not"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas is 3 and max_replicas 2"),
        ({"lora": "ink"}, "'ink' is not NAME=FILE"),
        ({"num_cpus": "nan"}, "num_cpus is 'nan'"),
    ],
)
def test_a_bad_argument_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        ServeArgs.model_validate(OPEN | settings)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_key_is_not_shown() -> None:
    with pytest.raises(RequestError) as refused:
        ServeArgs.model_validate({"api_key": {"secret-key": 1}})
    assert "secret-key" not in str(refused.value)


def test_somebody_has_decided_who_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no API key is set"):
        ServeArgs.model_validate({}).deployment_options()
    with pytest.raises(RequestError, match="leave one out"):
        ServeArgs.model_validate({"no_auth": True, "api_key": "a"}).deployment_options()
    monkeypatch.setenv("SD2RT_API_KEY", "a")
    ServeArgs.model_validate({}).deployment_options()


def test_texts_are_split_by_commas_and_paths_are_absolute() -> None:
    options = ServeArgs.model_validate(
        {"bundle": "demo,bundles/other", "lora": "ink=ink.safetensors", "api_key_file": "keys"}
    ).server_options()
    assert options["bundle"] == ["demo", os.path.abspath("bundles/other")]
    assert options["lora"] == {"ink": os.path.abspath("ink.safetensors")}
    assert options["api_key_file"] == [os.path.abspath("keys")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"threads": 1}),
        ({"num_cpus": "4"}, {"threads": 4}),
        ({"num_cpus": 4, "threads": 2}, {"threads": 2}),
        ({"num_gpus": 0.5}, {"device": ["cuda"]}),
        ({"num_gpus": 2}, {"device": ["cuda:0", "cuda:1"]}),
    ],
)
def test_devices_follow_what_is_reserved(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    options = ServeArgs.model_validate(OPEN | settings).server_options()
    assert {name: options.get(name) for name in ("device", "threads")} == {
        "device": None,
        "threads": None,
    } | expected


def test_ray_s_bound_is_above_the_queue() -> None:
    options = ServeArgs.model_validate(OPEN | {"max_queue": 16, "num_gpus": 2}).deployment_options()
    # Of two devices.
    assert options["max_ongoing_requests"] > 32
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 2}


def test_replicas_follow_the_load() -> None:
    options = ServeArgs.model_validate(OPEN | {"min_replicas": 0, "max_replicas": 8}).deployment_options()
    assert "num_replicas" not in options
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (0, 8)
    assert ServeArgs.model_validate(OPEN).deployment_options()["num_replicas"] == 1
