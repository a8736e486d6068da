from __future__ import annotations

import io
from typing import Any

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.rows.reading import rows_of
from sd2rt.runtime.rows.row import Row, parse_row


@pytest.mark.parametrize("text", ["a fox", "{red|blue} car", "{a} b", " spaces "])
def test_text_is_a_prompt(text: str) -> None:
    assert parse_row(text, 4) == Row(4, text)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ('"size": "512x768"', {"width": 512, "height": 768}),
        ('"steps": 3, "cfg": 2', {"num_inference_steps": 3, "guidance_scale": 2}),
        ('"num-inference-steps": 3', {"num_inference_steps": 3}),
        ('"Negative": "b"', {"negative_prompt": "b"}),
        ('"guidance": "9,3"', {"guidance_scale": (9.0, 3.0)}),
        ('"guidance_interval": "0.3:5"', {"guidance_interval": (0.3, 5.0)}),
        ('"variation": "7:0.5"', {"variation_seed": 7, "variation_strength": 0.5}),
        ('"sampler": "DPM++ 2M Karras"', {"sampler": "DPM++ 2M Karras"}),
        ('"Schedule": "Simple", "grid": "a1111"', {"schedule": "Simple", "grid": "a1111"}),
        ('"sampler_options": {"solver_order": 3}', {"sampler_options": {"solver_order": 3}}),
        ('"sigmas": [10, 1, 0]', {"sigmas": (10, 1, 0)}),
        ('"image": "a.png", "strength": null', {"image": "a.png"}),
    ],
)
def test_options_of_json(options: str, fields: dict[str, Any]) -> None:
    assert parse_row(f'{{"prompt": "a", {options}}}', 1) == Row(1, "a", fields)


def test_seed_and_count() -> None:
    assert parse_row('{"prompt": "a", "seed": -1, "count": 3}', 1) == Row(1, "a", {}, -1, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"', "it is not JSON"),
        ("{}", "there is no prompt"),
        ('{"prompt": 3}', "prompt is not text"),
        ('{"prompt": "a", "stepz": 3}', "there is no option stepz: did you mean steps"),
        ('{"prompt": "a", "xyzzy": 3}', "there is no option xyzzy: choose from"),
        (
            '{"prompt": "a", "steps": 3, "num_inference_steps": 3}',
            "num_inference_steps repeats another option",
        ),
        ('{"prompt": "a", "size": 512}', "size is 512: write it as text"),
        ('{"prompt": "a", "size": "5x"}', "is not WxH"),
        ('{"prompt": "a", "seed": "3"}', "seed is '3': use a whole number"),
        ('{"prompt": "a", "count": true}', "count is True: use a whole number"),
        ('{"prompt": "a", "image": "-"}', "image is '-': name a file"),
        ('{"prompt": "a", "latents": [1]}', "there is no option latents"),
    ],
)
def test_rows_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said.replace("(", r"\(")):
        parse_row(text, 1)


def test_lines_are_read_when_they_are_needed() -> None:
    stream = io.StringIO('a\n\n  \n{"prompt": "b"}\r\n{"prompt": 1}\nc')
    rows = rows_of(stream, "a file")
    assert next(rows) == Row(1, "a")
    assert stream.tell() == 2
    second, third, fourth = rows
    assert second == Row(4, "b")
    assert isinstance(third, RequestError)
    assert str(third) == "line 5: prompt is not text"
    assert fourth == Row(6, "c")


def test_an_endless_line() -> None:
    with pytest.raises(RequestError, match="line 1 of a file has more than 1048576 characters"):
        next(rows_of(io.StringIO("a" * (2 << 20)), "a file"))
