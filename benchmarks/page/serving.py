"""Render the page on serving: its tables of codes and metrics from the code, its numbers from a result."""

from __future__ import annotations

from pathlib import Path
from string import Template

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.page import markdown
from benchmarks.page.latest import NotMeasuredError, Result, Results
from benchmarks.page.markdown import number, spread, yes
from sd2rt.runtime.server.errors import ANSWERS
from sd2rt.runtime.server.http.metrics import Metrics, WorkerFacts
from sd2rt.runtime.server.http.page.routes import page_bytes
from sd2rt.runtime.server.worker_stats import WorkerStats

TEMPLATE = Path(__file__).resolve().parent.parent / "serving.md.in"
_MIB = 1 << 20


def page(results: Results, folder: Path) -> str:
    """Render docs/serving.md; its links are relative to ``folder``."""
    texts = {"errors": _errors(), "metrics": _metrics(), "page_weight": _page_weight()}
    try:
        result = results.newest("serving", lambda value: bool(value["complete"]))
        texts |= _measured(result, folder)
    except NotMeasuredError as missing:
        texts |= {
            "steps": "25",
            "measured": f"Not measured yet: {missing}.",
            "overload": "",
            "origin": "",
            "capacity": "a number of images a second that is not measured yet",
        }
    texts["load"] = _load(results, folder)
    return Template(TEMPLATE.read_text()).substitute(texts)


def _load(results: Results, folder: Path) -> str:
    """Table of `sd2rt bench --serve`."""
    try:
        result = results.newest("bench-serve")
    except NotMeasuredError as missing:
        return f"Not measured yet: {missing}."
    value = result.value
    settings = value["settings"]
    alone = ", ".join(f"{each['steps']} steps {number(each['seconds'])} s" for each in value["alone"])
    header = (
        "requests a second",
        "times serial",
        "sent",
        "good",
        "images a second",
        "p50",
        "p90",
        "p99",
        "refused",
    )
    rows = []
    for case in value["cases"]:
        latency = case["latency_seconds"]
        refused = {status: count for status, count in case["statuses"].items() if status != "200"}
        rows.append(
            [
                number(case["rate"]),
                f"{case['load']:.2f}",
                str(case["requests"]),
                f"{case['good']:.1%}",
                number(case["images_per_second"]),
                *("" if latency is None else f"{number(latency[name])} s" for name in ("p50", "p90", "p99")),
                ", ".join(f"{count} {status}" for status, count in refused.items()) or "none",
            ]
        )
    return (
        f"{settings['model']}, each request of {' or '.join(map(str, sorted(set(settings['steps']))))} steps; alone "
        f"{alone}, so that {number(value['serial_rate'])} requests a second are made one by one. Good are those that "
        f"take at most {settings['objective']:g} times what they take alone.\n\n"
        f"{markdown.table(header, rows)}\n\n{markdown.origin(result, folder)}"
    )


def _page_weight() -> str:
    """Kilobytes of the page's files."""
    return f"{page_bytes() / 1000:.0f}"


def _errors() -> str:
    by_status: dict[int, list[str]] = {}
    for code, answer in ANSWERS.items():
        by_status.setdefault(answer.status, []).append(f"`{code}`")
    rows = [[status, ", ".join(codes)] for status, codes in sorted(by_status.items())]
    return markdown.table(("status", "codes"), rows)


def _metrics() -> str:
    text = Metrics(lambda: WorkerFacts(WorkerStats())).text().decode()
    rows = [
        [f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.documentation]
        for family in text_string_to_metric_families(text)
    ]
    return markdown.table(("metric", "meaning"), rows)


def _measured(result: Result, folder: Path) -> dict[str, str]:
    value = result.value
    bounds, kill, load = value["bounds"], value["kill"], value["overload"]
    free, step = value["cancel"]["free_seconds"], value["cancel"]["step_seconds"]
    grown = max(
        value["growth"]["after"][name]["rss_bytes"] - value["growth"]["before"][name]["rss_bytes"]
        for name in ("front", "worker")
    )
    steady = all(
        value["growth"]["after"][name][what] <= value["growth"]["before"][name][what]
        for name in ("front", "worker")
        for what in ("descriptors", "threads")
    )
    refused = {status for status in load["statuses"] if status != "200"}
    rows: list[list[str]] = [
        _row("HTTP over the Python API", value["latency"]["ratio"], bounds["ratio"]),
        _row("front process", value["starts"]["front_bytes"], bounds["front_bytes"], " MiB", 1 / _MIB),
        _row("ready after start", value["starts"]["ready_seconds"], bounds["ready_seconds"], " s"),
        _row(
            "a client left: its place is free",
            free,
            step + bounds["cancel_extra_seconds"],
            " ms",
            1000,
        ),
        _row(
            f"beside {value['slow']['clients']} clients with slow headers, over alone",
            value["slow"]["ratio"],
            bounds["slow_ratio"],
        ),
        _row("worker killed: `/readyz` is 503", kill["down_seconds"], bounds["down_seconds"], " s"),
        _row("worker killed: next image is made", kill["again_seconds"], bounds["again_seconds"], " s"),
        [
            f"{load['times']:g} times the capacity, {load['seconds']:g} s: images made, over capacity",
            f">= {bounds['goodput']:g}",
            number(load["goodput"]),
            yes(load["goodput"] >= bounds["goodput"]),
        ],
        _row(
            "meanwhile `/livez`, 99th percentile",
            dict.fromkeys(("median", "min", "max"), load["livez_seconds"]["p99"]),
            bounds["livez_seconds"],
            " ms",
            1000,
        ),
        [
            f"{value['growth']['requests']} requests: memory of front or worker grows by",
            f"<= {bounds['growth_bytes'] / _MIB:g} MiB",
            f"{grown / _MIB:.1f} MiB, descriptors and threads {'do not grow' if steady else 'grow'}",
            yes(grown <= bounds["growth_bytes"] and steady),
        ],
    ]
    return {
        "steps": str(value["latency"]["steps"]),
        "measured": markdown.table(("", "bound", "measured", "reached"), rows),
        "overload": f"Under overload every other answer was {', '.join(sorted(refused)) or 'never needed'}. A client "
        f"that leaves frees its place within one step ({number(step * 1000)} ms here) and 50 ms.",
        "capacity": f"{number(load['capacity'])} images a second",
        "origin": markdown.origin(result, folder),
    }


def _row(label: str, values: dict[str, float], bound: float, unit: str = "", scale: float = 1.0) -> list[str]:
    held = values["median"] <= bound
    return [label, f"<= {number(bound * scale)}{unit}", spread(values, scale) + unit, yes(held)]
