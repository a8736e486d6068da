"""The schemas of bodies allow what the server takes."""

from __future__ import annotations

import itertools
from typing import Any

import httpx

from benchmarks.serving.server_process import Server

from ..pictures import drawing, png


def choices(schema: dict[str, Any]) -> dict[str, list[str]]:
    """The values of each field of a form that has a few, as texts."""
    values: dict[str, list[str]] = {}
    for name, field in schema["properties"].items():
        if field.get("type") == "boolean":
            values[name] = field.get("enum", [True, False])
        elif "enum" in field or "const" in field:
            values[name] = field.get("enum", [field.get("const")])
    return {name: [str(value).lower() for value in listed] for name, listed in values.items()}


def test_values_of_two_fields_of_a_form_go_together(demo_server: Server) -> None:
    """A form's schema has no conditions, so a field whose values depend on another's is not in it."""
    body = httpx.get(f"{demo_server.url}/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]
    fields = choices(body["content"]["multipart/form-data"]["schema"])
    assert {"sampler", "output_format", "model"} <= fields.keys()
    picture = png(drawing(64, 64))
    tried = 0
    refused = []
    with httpx.Client(base_url=demo_server.url, timeout=60) as client:
        for first, second in itertools.combinations(sorted(fields), 2):
            for values in itertools.product(fields[first], fields[second]):
                form = {"prompt": "a", first: values[0], second: values[1]}
                made = client.post("/v1/jobs", data=form, files={"image": ("a.png", picture, "image/png")})
                tried += 1
                if made.status_code != 202:
                    refused.append((form, made.json()))
                else:
                    client.delete(f"/v1/jobs/{made.json()['id']}")
    assert refused == []
    assert tried > 100
