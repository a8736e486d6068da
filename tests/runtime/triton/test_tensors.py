"""Input tensors as requests, and events as output tensors, without Triton."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GeneratedImage, ModelInfo, Started, Stepped, TaskInfo
from sd2rt.runtime.triton.tensors import INPUTS, OUTPUTS, TritonRequest, request_of, tensors_of

MODEL = ModelInfo("demo", "base", {"text-to-image": TaskInfo(25, 4)}, 128, 128, "fp32", "", "", 1, 1)


def tensor(value: Any, kind: Any = object) -> Any:
    return np.array([value], kind)


def request(max_steps: int = 100, model: ModelInfo = MODEL, **values: Any) -> TritonRequest:
    return request_of(values, model, max_steps=max_steps, every_step=True)


def test_all_fields() -> None:
    options = {"sampler": "ddim", "priority": "batch", "size": "64x128", "deadline_ms": 5, "previews": True}
    options |= {"loras": [{"name": "ink", "scale": 2, "text_scale": 0.5}], "response_format": "b64_json"}
    made = request(
        prompt=tensor(b"a"),
        seed=tensor(7, np.int64),
        guidance_scale=tensor(7.1, np.float64),
        n=tensor(2, np.int32),
        image=tensor(b"\0\1\0"),
        options=tensor(json.dumps(options).encode()),
    )
    generation = made.generation
    assert made.encoded
    assert generation.fields == {
        "prompt": "a",
        "seed": 7,
        "guidance_scale": 7.1,
        "sampler": "ddim",
        "width": 64,
        "height": 128,
    }
    # They go through JSON to the worker.
    assert json.loads(json.dumps(generation.fields)) == generation.fields
    assert (generation.count, generation.priority, generation.deadline_ms) == (2, "batch", 5)
    assert generation.images == {"image": b"\0\1\0"}
    assert generation.loras == (("ink", 2.0, 0.5),)
    assert (generation.previews, generation.every_step) == (True, True)


def test_an_operators_bound_on_steps_bounds_the_default() -> None:
    assert request(max_steps=10, prompt=tensor(b"a")).generation.fields["num_inference_steps"] == 10
    assert "num_inference_steps" not in request(prompt=tensor(b"a")).generation.fields


def test_a_mask_keeps_what_is_outside() -> None:
    model = ModelInfo("i", "inpainting", {"inpainting": TaskInfo(25, 4)}, 8, 8, "fp32", "", "", 1, 1)
    assert request(model=model, prompt=tensor(b"a"), mask=tensor(b"x")).generation.fields["paste"] is True


@pytest.mark.parametrize(
    ("values", "code", "param"),
    [
        ({}, "invalid_value", "prompt"),
        ({"prompt": np.array([b"a", b"b"], object)}, "invalid_value", "prompt"),
        ({"prompt": tensor(b"\xff")}, "invalid_value", "prompt"),
        ({"seed": tensor(-1, np.int64)}, "invalid_value", "seed"),
        ({"guidance_scale": tensor(np.inf, np.float64)}, "invalid_value", "guidance_scale"),
        ({"n": tensor(11, np.int32)}, "invalid_value", "n"),
        ({"options": tensor(b"{")}, "invalid_json", "options"),
        ({"options": tensor(b"[" * 10_000)}, "invalid_json", "options"),
        ({"options": tensor(b"[]")}, "invalid_value", "options"),
        ({"options": tensor(b'{"prompt": "b"}')}, "invalid_value", "prompt"),
        ({"options": tensor(b'{"size": "x"}')}, "invalid_value", "size"),
        ({"options": tensor(b'{"output_format": "gif"}')}, "invalid_value", "output_format"),
        ({"options": tensor(b'{"partial_images": true}')}, "invalid_value", "partial_images"),
        ({"options": tensor(b'{"loras": [{"name": 1}]}')}, "invalid_value", "loras"),
        ({"options": tensor(b'{"loras": [{"name": "a", "scale": NaN}]}')}, "invalid_value", "loras"),
        ({"options": tensor(b'{"previews": 1}')}, "invalid_value", "previews"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ServerError) as caught:
        request(**({"prompt": tensor(b"a")} if values and "prompt" not in values else {}), **values)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_events() -> None:
    assert tensors_of(Started(1.0), encoded=False) == {}
    assert set(tensors_of(Stepped(1, 4), encoded=False)) == {"step", "steps"}
    event = Completed([GeneratedImage(b"a\0", 7, 8, 16)], {"steps": 4})
    plain, encoded = tensors_of(event, encoded=False), tensors_of(event, encoded=True)
    # Zeros at the end stay.
    assert plain["image"].tolist() == [b"a\0"]
    assert encoded["image"].tolist() == [b"YQA="]
    assert json.loads(plain["facts"][0]) == {"steps": 4, "sizes": [[8, 16]]}
    types = {"TYPE_INT32": np.int32, "TYPE_INT64": np.int64, "TYPE_STRING": np.object_}
    for name, value in {**plain, **tensors_of(Stepped(1, 4, b"p"), encoded=False)}.items():
        assert value.dtype == types[OUTPUTS[name][0]]
    assert INPUTS["prompt"] == "TYPE_STRING"
