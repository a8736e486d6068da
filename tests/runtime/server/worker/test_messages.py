"""Messages survive the wire; incomplete ones are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sd2rt.runtime.images.preparation import Enlargement, Preparation
from sd2rt.runtime.server.generation import (
    Completed,
    DepthMap,
    Event,
    GeneratedImage,
    GenerationRequest,
    Partial,
    Started,
    Stepped,
)
from sd2rt.runtime.server.worker.messages import event_frame, event_of, model_of, request_frame, request_of
from sd2rt.runtime.server.worker.wire import Frame, WireError

REQUEST = GenerationRequest(
    request_id="a",
    model="demo",
    fields={"prompt": "é", "seed": 2**64 - 1, "sigmas": [1.5, 0.1], "eta": 0.5},
    images={"mask": b"m", "image": b"i" * 1000},
    count=3,
    output_format="webp",
    compression=50,
    partial_images=2,
    previews=True,
    priority="batch",
    key="caller",
    deadline_ms=1000,
    loras=(("style", 0.5), ("style", -1.0, 0.25)),
    preparation=Preparation(resize_mode="fill", mask_blur=(4.0, 2.5), only_masked=True, padding=32),
    enlargement=Enlargement(width=100, height=50, crop=False),
    infotexts=True,
)
EVENTS: list[Event] = [
    Started(1.5),
    DepthMap(b"depth"),
    Stepped(1, 20),
    Stepped(2, 20, b"preview"),
    Partial(0, b"partial"),
    Completed([GeneratedImage(b"a", 1, 64, 128), GeneratedImage(b"b", 2, 64, 128)], {"sampler": "ddim"}),
]


def through_json(frame: Frame) -> Frame:
    return Frame(json.loads(json.dumps(frame.header)), frame.attachments)


def test_requests() -> None:
    assert request_of(through_json(request_frame(REQUEST))) == REQUEST


@pytest.mark.parametrize("event", EVENTS)
def test_events(event: Event) -> None:
    assert event_of(through_json(event_frame(event))) == event


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"request": None},
        {"request": {"images": [], "loras": []}},
        {"request": {"request_id": "a", "model": "b", "fields": {}, "images": ["image"], "loras": []}},
        {"request": {"request_id": "a", "model": "b", "fields": {}, "images": [], "loras": [["a"]]}},
        {"request": {"request_id": "a", "model": "b", "fields": {}, "images": [], "loras": [["a", 1, 2, 3]]}},
        {"request": {"request_id": "a", "model": "b", "fields": {}, "images": [], "loras": [], "path": "x"}},
    ],
)
def test_incomplete_requests_are_refused(header: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        request_of(Frame(header))


@pytest.mark.parametrize(
    "frame",
    [
        Frame({}),
        Frame({"event": "other"}),
        Frame({"event": "partial", "index": 0}),
        Frame({"event": "stepped", "step": 1}),
        Frame({"event": "completed", "images": [{"seed": 1, "width": 1, "height": 1}], "facts": {}}),
        Frame({"event": "completed", "images": [{"path": "x"}], "facts": {}}, (b"",)),
    ],
)
def test_incomplete_events_are_refused(frame: Frame) -> None:
    with pytest.raises(WireError):
        event_of(frame)


def test_incomplete_models_are_refused() -> None:
    with pytest.raises(WireError):
        model_of({"id": "demo", "tasks": {}, "loras": []})
