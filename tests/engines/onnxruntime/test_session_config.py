"""ONNX Runtime accepts any configuration key: those in use must exist in it, and only session_config sets them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import onnxruntime
import pytest

from sd2rt.engines.onnxruntime.session_config import RunKey, SessionKey, set_run_config, set_session_config

PACKAGE = Path(__file__).parents[3]


@pytest.mark.parametrize("key", [*get_args(SessionKey), *get_args(RunKey)])
def test_the_installed_version_has_the_key(key: str) -> None:
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*.so")
    assert b"\0" + key.encode() + b"\0" in library.read_bytes()


def test_unknown_keys_are_errors() -> None:
    key: Any = "session.record_ep_graph_assignment"
    with pytest.raises(ValueError, match=r"unknown configuration key 'session\.record_ep_graph_assignment'"):
        set_session_config(onnxruntime.SessionOptions(), key, "1")
    with pytest.raises(ValueError, match="unknown configuration key"):
        set_run_config(onnxruntime.RunOptions(), key, "1")


def test_entries_are_set() -> None:
    options, run = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    set_session_config(options, "session.record_ep_graph_assignment_info", "1")
    set_run_config(run, "gpu_graph_id", "7")
    assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    assert run.get_run_config_entry("gpu_graph_id") == "7"


def test_nothing_else_sets_entries_or_free_dimensions() -> None:
    """Unknown names of free dimensions are silently accepted too."""
    setters = re.compile(
        r"add_(session_config_entry|run_config_entry|free_dimension_override_by_(name|denotation))"
    )
    users = {
        path.name
        for folder in ("engines", "runtime", "export")
        for path in (PACKAGE / folder).rglob("*.py")
        if setters.search(path.read_text())
    }
    assert users == {"session_config.py"}
