"""LoRAs in prompts."""

from __future__ import annotations

import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.sdapi.prompt_tags import refuse_tags, take_loras


@pytest.mark.parametrize(
    ("prompt", "rest", "loras"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:ink:0.8>", "a cat ", [("ink", 0.8)]),
        ("<lora:ink>a cat", "a cat", [("ink", 1.0)]),
        ("<lora:ink:-1> a <lyco:wash:0>", " a ", [("ink", -1.0), ("wash", 0.0)]),
        ("<lora:an ink.v2:1e-1>", "", [("an ink.v2", 0.1)]),
        ("<lora:a:1:0.5>", "", [("a", 0.5, 1.0)]),
        ("<lora:a:te=0.2> <lora:b:0.2:unet=2>", " ", [("a", 0.2), ("b", 2.0, 0.2)]),
        ("<lora:a:unet=2><lora:b:te=0:unet=1>", "", [("a", 2.0, 1.0), ("b", 1.0, 0.0)]),
        ("a < b <loral:x:1> [c|d]", "a < b <loral:x:1> [c|d]", []),
    ],
)
def test_tags(prompt: str, rest: str, loras: list[tuple[str, float] | tuple[str, float, float]]) -> None:
    text, found = take_loras(prompt)
    assert text == rest
    assert [
        (lora.name, lora.scale) if lora.text_scale is None else (lora.name, lora.scale, lora.text_scale)
        for lora in found
    ] == loras


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("<hypernet:a:1>", "not_supported"),
        ("<lora:a:1:0.5:4>", "invalid_value"),
        ("<lora:a:dyn=4>", "invalid_value"),
        ("<lora:a:1:1e7>", "invalid_value"),
        ("<lora:a:unet=nan>", "invalid_value"),
        ("<lora::1>", "invalid_value"),
        ("<lora:a:x>", "invalid_value"),
        ("<lora:a:nan>", "invalid_value"),
        ("<lora:a:inf>", "invalid_value"),
        ("<lora:a:>", "invalid_value"),
        ("<lora:a:1>" * 17, "invalid_value"),
        (f"<lora:{'a' * 201}:1>", "invalid_value"),
    ],
)
def test_tags_that_cannot_be_used(prompt: str, code: str) -> None:
    with pytest.raises(ServerError) as error:
        take_loras(prompt)
    assert error.value.code == code


def test_negative_prompts_have_no_tags() -> None:
    refuse_tags("a (cat:1.2)")
    with pytest.raises(ServerError, match="negative prompt"):
        refuse_tags("a <lora:ink:1>")
