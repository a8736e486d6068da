"""The Grafana board and the alert rules: every expression names metrics that the server exports, and is valid."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sd2rt.runtime.server.errors import ErrorCode
from sd2rt.runtime.server.generation import ModelInfo, TaskInfo
from sd2rt.runtime.server.http.metrics import Metrics, WorkerFacts
from sd2rt.runtime.server.worker_stats import WorkerStats

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
_NAME = re.compile(r"(?<![\w:])(sd2rt_\w+)(\{[^}]*\})?")
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def exported() -> dict[str, set[str]]:
    """Names of all samples that a server exports, with their labels."""
    stats = WorkerStats(
        up={"cpu": True},
        restarts={"died": 1},
        nonfinite={"step": 1},
        batches={1: 1},
        step_seconds={1: 1.0},
        device_memory_bytes={"cpu": 1},
    )
    info = ModelInfo("demo", "base", {"text-to-image": TaskInfo(1, 1)}, 8, 8, "fp32", "ab", "", 1, 1)
    metrics = Metrics(lambda: WorkerFacts(stats, {"demo": info}))
    metrics.requests.labels("generations", "demo", "ok").inc()
    metrics.rejected.labels("queue_full").inc()
    metrics.request_seconds.labels("generations").observe(1)
    metrics.stage_seconds.labels("step").observe(1)
    metrics.cancelled.labels("deleted").inc()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "sd2rt.json").read_text())
    return found


def targets() -> list[str]:
    return [target["expr"] for panel in board()["panels"] for target in panel.get("targets", ())]


def expressions() -> list[str]:
    variables = [item["query"] for item in board()["templating"]["list"] if item["type"] == "query"]
    return [rule["expr"] for rule in rules()] + targets() + variables


def test_there_is_something_to_check() -> None:
    assert len(rules()) == 10
    assert len(targets()) > 20


@pytest.mark.parametrize("expression", expressions())
def test_expressions_name_exported_metrics(expression: str) -> None:
    """With their labels, beside those that Prometheus adds."""
    names = exported()
    found = _NAME.findall(expression)
    # `up` is Prometheus' own.
    assert found or expression.startswith("up{")
    for name, selector in found:
        assert name in names
        labels = set(re.findall(r"(\w+)\s*(?:=|!)", selector))
        assert labels <= names[name] | {"job", "instance"}
        for outcome in re.findall(r'(?:outcome|reason)=~"([^"]*)"', selector):
            assert set(outcome.split("|")) <= set(get_args(ErrorCode))


def test_the_board_shows_every_metric() -> None:
    shown = {name for expression in targets() for name, _ in _NAME.findall(expression)}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()} - stems == set()


def test_a_failing_expression_would_be_seen() -> None:
    with pytest.raises(AssertionError):
        test_expressions_name_exported_metrics("sd2rt_no_such_metric > 1")
    with pytest.raises(AssertionError):
        test_expressions_name_exported_metrics('sd2rt_rejected_total{model="a"} > 1')


def test_panels_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in board()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells


@promtool
def test_promtool_accepts_the_rules() -> None:
    for command in (
        ("check", "rules", "rules.yaml"),
        ("check", "config", "prometheus.yaml"),
        ("test", "rules", "rules_test.yaml"),
    ):
        done = subprocess.run(
            ["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_that_raises_it() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


@promtool
def test_promtool_accepts_the_board(tmp_path: Path) -> None:
    """As recording rules, with Grafana's variables replaced."""
    records = [
        {
            "record": f"check:panel:{index}",
            "expr": re.sub(r"\$(job|instance)", ".*", expression).replace("$__rate_interval", "1m"),
        }
        for index, expression in enumerate(targets())
    ]
    file = tmp_path / "board.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": records}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_documented() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    for rule in rules():
        assert f"`{rule['alert']}`" in page
        assert rule["labels"]["severity"] in ("page", "ticket")
