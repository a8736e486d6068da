"""The typed keyword arguments match the fields of requests."""

from __future__ import annotations

from sd2rt.runtime.request.fields import CallOptions, RequestFields
from sd2rt.runtime.request.request import Request


def test_every_field_is_a_keyword_of_requests_and_calls() -> None:
    # output_type is a separate parameter: it determines the type of the images.
    fields = set(Request.model_fields) - {"output_type"}
    assert set(RequestFields.__annotations__) == fields
    assert set(CallOptions.__annotations__) == fields - {"prompt"}
