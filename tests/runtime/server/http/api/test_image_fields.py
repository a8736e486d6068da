"""Fields of requests, from JSON and from forms."""

from __future__ import annotations

from typing import Any

import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api.image_fields import (
    EditFields,
    ImageFields,
    JobFields,
    json_kinds,
    parse_fields,
)
from sd2rt.runtime.server.http.api.uploads import Upload


def test_openai_fields_are_taken() -> None:
    """As front ends send them, with fields that have no effect and fields that nobody knows."""
    fields, ignored = parse_fields(
        ImageFields,
        Upload(
            {
                "prompt": "a",
                "model": None,
                "n": 2.0,
                "size": "auto",
                "quality": "hd",
                "style": "vivid",
                "moderation": "low",
                "background": "auto",
                "complexity": "high",
                "response_format": "b64_json",
                "seed": 0,
                "guidance_scale": 4,
                "steps": 5,
                "\x1b[31m": 1,
            }
        ),
    )
    assert fields.n == 2
    assert fields.request_fields() == {"prompt": "a", "seed": 0, "guidance_scale": 4.0}
    assert ignored == ["\\x1b[31m", "steps"]


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"n": "1"}, "n"),
        ({"n": 1.5}, "n"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": "4"}, "guidance_scale"),
        ({"guidance_scale": True}, "guidance_scale"),
        ({"stream": "true"}, "stream"),
        ({"partial_images": 4}, "partial_images"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"sampler": "euler_a"}, "sampler"),
        ({"rng": "cuda:0"}, "rng"),
        ({"loras": [{"name": "a", "scale": "1"}]}, "loras.0.scale"),
        ({"loras": [{"name": "a", "path": "/etc/passwd"}]}, "loras.0.path"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"output_compression": 101}, "output_compression"),
    ],
)
def test_refusals(changed: dict[str, Any], param: str) -> None:
    with pytest.raises(ServerError) as error:
        parse_fields(ImageFields, Upload({"prompt": "a", **changed}))
    assert (error.value.code, error.value.param) == ("invalid_value", param)
    assert len(error.value.message) < 400


def test_fields_of_forms() -> None:
    texts = {
        "prompt": "12",
        "n": "2",
        "strength": ".5",
        "stream": "true",
        "loras": '[{"name": "a"}]',
        "x": "1",
    }
    fields, ignored = parse_fields(EditFields, Upload(texts, from_form=True))
    assert (fields.prompt, fields.n, fields.strength, fields.stream) == ("12", 2, 0.5, True)
    assert fields.loras is not None
    assert fields.loras[0].scale == 1
    assert ignored == ["x"]
    repeated = Upload(dict(texts), from_form=True, repeated={"x"})
    assert parse_fields(EditFields, repeated)[1] == ["x"]
    repeated.repeated.add("n")
    with pytest.raises(ServerError, match="n is given more than once"):
        parse_fields(EditFields, repeated)
    with pytest.raises(ServerError, match="n is 'two'"):
        parse_fields(EditFields, Upload({"prompt": "a", "n": "two"}, from_form=True))


def test_types_of_all_fields_are_known() -> None:
    kinds = json_kinds(JobFields)
    assert kinds.keys() == JobFields.model_fields.keys()
    assert {name for name, kind in kinds.items() if kind == "boolean"} == {
        "stream",
        "previews",
        "only_masked",
    }
    assert kinds["seed"] == "integer"
    assert kinds["strength"] == "number"
