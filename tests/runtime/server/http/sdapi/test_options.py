"""Options by caller."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import ModelInfo
from sd2rt.runtime.server.http.sdapi.options import Options, OptionStore, title_of

DEMO = ModelInfo(
    id="demo",
    kind="base",
    tasks={},
    width=128,
    height=128,
    precision="fp32",
    identity="0123456789abcdef" * 4,
    license="Apache-2.0",
    created=0,
    memory_bytes=0,
    text_layers=4,
)
MODELS = {"demo": DEMO, "Other": replace(DEMO, id="Other", identity="f" * 64)}


@pytest.mark.parametrize("name", ["Other", "other", "Other [ffffffffff]", "f" * 64, "ffffffffff", " other "])
def test_checkpoints_have_several_names(name: str) -> None:
    assert Options().changed({"sd_model_checkpoint": name}, MODELS, "the body").model == "Other"


def test_what_is_shown_can_be_sent_back() -> None:
    options = Options("Other", 3, "jpeg", "NV")
    assert options.rng == "cuda"
    shown = options.shown(MODELS)
    assert shown["sd_model_checkpoint"] == title_of(MODELS["Other"])
    assert Options().changed(shown, MODELS, "the body") == options
    assert Options().changed(Options().shown(MODELS), MODELS, "the body").model == "demo"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"sd_model_checkpoint": "third"}, "model_not_found"),
        ({"sd_model_checkpoint": 3}, "invalid_value"),
        ({"CLIP_stop_at_last_layers": 5}, "invalid_value"),
        ({"CLIP_stop_at_last_layers": True}, "invalid_value"),
        ({"CLIP_stop_at_last_layers": 1.5}, "invalid_value"),
        ({"samples_format": "avif"}, "invalid_value"),
        ({"randn_source": ["CPU"]}, "invalid_value"),
        ({"sd_vae": "other.pt"}, "not_supported"),
        ({"grid_save": 0}, "not_supported"),
        ({"return_grid": True}, "not_supported"),
        ({"anything": None}, "not_supported"),
    ],
)
def test_what_cannot_be_set(values: dict[str, object], code: str) -> None:
    with pytest.raises(ServerError) as error:
        Options().changed(values, MODELS, "the body")
    assert error.value.code == code


def test_null_changes_nothing() -> None:
    options = Options("Other", 3, "jpeg", "NV")
    assert options.changed(dict.fromkeys(options.shown(MODELS)), MODELS, "the body") == options


def test_old_callers_are_forgotten() -> None:
    store = OptionStore()
    for number in range(10_001):
        store.put(str(number), Options(model="Other"))
    assert store.get("0") == Options()
    assert store.get("1").model == store.get("10000").model == "Other"
