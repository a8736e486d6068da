"""Render one section per benchmark from its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import roofline
from benchmarks.demo.score_tables import score_table, settings_table
from benchmarks.page import markdown, prediction
from benchmarks.page.latest import Result, Results
from benchmarks.page.markdown import number, origin, spread
from benchmarks.page.ort_forms import section as cuda_forms
from benchmarks.peers.peer_results import crowds
from benchmarks.scaling import __main__ as scaling

Section = Callable[[Results, Path], str]
"""Renders a section for a page in the given folder; raises NotMeasuredError or KeyError if a value is missing."""


def _newest(name: str, render: Callable[[dict[str, Any]], str]) -> Section:
    """A section with the newest result of a benchmark: its table and origin."""

    def section(results: Results, folder: Path) -> str:
        return _with_origin(results.newest(name), folder, render)

    return section


def _with_origin(result: Result, folder: Path, render: Callable[[dict[str, Any]], str]) -> str:
    return f"{render(result.value)}\n\n{origin(result, folder)}"


def _bench(results: Results, folder: Path) -> str:
    def key(value: dict[str, Any]) -> object:
        settings = value["settings"]
        return value["bundle"]["name"], value["bundle"]["precision"], settings["device"], settings["backend"]

    tables = (_with_origin(result, folder, _bench_tables) for result in results.each("bench", key))
    return "\n\n".join(tables)


def _bench_tables(value: dict[str, Any]) -> str:
    bundle, settings, first = value["bundle"], value["settings"], value["first_image"]
    head = (
        f"`{bundle['name']}`, {bundle['precision']}, {settings['backend']} on {settings['device']}: "
        f"{settings['steps']} steps of {settings['sampler']}, guidance {settings['guidance_scale']:g}."
    )
    rows: list[list[str]] = [
        [label, *(spread(case[key], scale) if key in case else "" for case in value["cases"])]
        for label, key, scale in (
            ("it/s", "it_per_second", 1.0),
            ("images/s", "images_per_second", 1.0),
            ("s/image", "seconds_per_image", 1.0),
            ("ms/step", "seconds_per_step", 1e3),
            ("host us/step, outside the engine", "host_us", 1.0),
        )
    ]
    stages = dict.fromkeys(stage for case in value["cases"] for stage in case["stages"])
    rows += [
        [
            f"{stage}, ms",
            *(spread(c["stages"][stage], 1e3) if stage in c["stages"] else "" for c in value["cases"]),
        ]
        for stage in stages
    ]
    rows.append(["peak memory, MB", *(_megabytes(case["peak_rss_bytes"]) for case in value["cases"])])
    header = ["", *(f"{case['width']}x{case['height']}, batch {case['batch']}" for case in value["cases"])]
    once = [["opening the bundle, s", number(value["opening"]["seconds"])]]
    once += [["peak memory of all, MB", _megabytes(value["peak_rss_bytes"])]]
    if first is not None:
        once.insert(0, ["process start to first image, s", spread(first["seconds"])])
        if first["peak_rss_bytes"] is not None:
            once.insert(1, ["its peak memory, MB", spread(first["peak_rss_bytes"], 1e-6)])
    return "\n\n".join((head, markdown.table(header, rows), markdown.table(("", "once"), once)))


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f}"


def _peers(value: dict[str, Any]) -> str:
    peers = value["peers"]
    measured = {name: peer for name, peer in peers.items() if peer["available"]}
    order = sorted(measured, key=lambda name: measured[name]["seconds_per_step"]["median"])
    rows = []
    for name in order:
        peer, image = measured[name], measured[name]["image"] or {}
        psnr = image.get("psnr_db")
        ratios = [
            spread(peer["ratio"][other][time]) if other in peer["ratio"] else ""
            for other, time in (
                ("sd2rt", "seconds_per_step"),
                ("diffusers", "seconds_per_step"),
                ("diffusers", "seconds_per_image"),
            )
        ]
        rows.append(
            [
                f"{peer['label']} ({name})",
                peer["precision"],
                spread(peer["seconds_per_step"]),
                *ratios,
                number(peer["open_seconds"]),
                number(peer["warmup_seconds"]),
                f"{peer['peak_rss_bytes'] / 1e9:.2f}",
                image.get("max_pixel", ""),
                "" if not image else "equal" if psnr is None else f"{psnr:.1f}",
            ]
        )
    header = (
        "", "precision", "s/step", "step / sd2rt", "step / diffusers", "image / diffusers", "open, s", "warm-up, s",
        "peak, GB", "off by, of 255", "PSNR, dB",
    )  # fmt: skip
    head = f"Size {_size(value['size'])}, {value['steps']} steps, {value['pairs']} rounds, "
    head += f"{value['threads']} threads."
    if (reference := value.get("reference", "diffusers")) != "diffusers":
        head += f" The reference images are {reference}'s."
    lines = [head, markdown.table(header, rows)]
    lines += crowds(value.get("crowded", ()))
    missing = [f"- {p['label']} ({name}): {p['reason']}" for name, p in peers.items() if not p["available"]]
    if missing:
        lines.append("\n".join(("Not measured:", "", *missing)))
    return "\n\n".join(lines)


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _first_image(value: dict[str, Any]) -> str:
    ratio = value["ratios"]
    rows = [
        ["time, sd2rt / diffusers", spread(ratio["seconds"])],
        ["peak memory, sd2rt / diffusers", spread(ratio["peak_rss_bytes"])],
    ]
    for side in ("sd2rt", "diffusers"):
        measured = value[side]
        rows.append([f"{side}, s", spread(measured["seconds"])])
        rows.append([f"{side}, peak MB", spread(measured["peak_rss_bytes"], 1e-6)])
    return markdown.table(("process start to PNG", ""), rows)


def _roofline(value: dict[str, Any]) -> str:
    text = markdown.table(roofline.COLUMNS, roofline.rows(value))
    gemm, copy = value["rates_measured"]["gemm"], value["rates_measured"]["copy"]
    head = (
        f"{_size(value['size_px'])}, batch {value['batch']}, {value['precision']}, {value['threads']} threads. "
        f"The GEMM is {gemm['side']}x{gemm['side']} by {gemm['library']}, the copy {copy['bytes'] / 1e6:.0f} MB by "
        f"{copy['library']}."
    )
    if value["agreement"]:
        worst = max(abs(row["tflop"] / row["reference_tflop"] - 1) for row in value["agreement"])
        head += (
            f" Operations agree with an independent count of {len(value['agreement'])} networks and sizes within "
            f"{worst:.2%}."
        )
    return f"{head}\n\n{text}"


def _scaling(name: str) -> Section:
    def section(results: Results, folder: Path) -> str:
        result = results.newest(name)
        value = result.value
        text = markdown.table(scaling.COLUMNS, scaling.rows(value))
        if "plot" in value:
            picture = markdown.link(result, folder, value["plot"])
            text += f"\n\n![time and memory against batch, size, steps and requests]({picture})"
        return f"{text}\n\n{origin(result, folder)}"

    return section


def _startup(value: dict[str, Any]) -> str:
    rows = [
        ["process start to PNG, s", spread(value["seconds"])],
        ["its CPU time, s", spread(value["cpu_seconds"])],
        ["peak memory, MB", spread(value["peak_rss_bytes"], 1e-6)],
    ]
    rows += [[f"{name}, ms", spread(seconds, 1e3)] for name, seconds in value["phases_seconds"].items()]
    return markdown.table((f"{value['steps']} steps of the demo", ""), rows)


def _host_overhead(value: dict[str, Any]) -> str:
    rows = [
        [
            f"{case['sampler']}, {case['width']}x{case['height']}, batch {case['batch']}",
            spread(case["host_us"]),
            spread(case["first_us"]),
            spread(case["launch_us"]),
        ]
        for case in value["cases"]
    ]
    return markdown.table(("", "host us/step", "first step", "engine us/step"), rows)


def _noise(value: dict[str, Any]) -> str:
    rows = [
        [f"{case['draw']}, {case['rng']}", *(spread(case[key]) if key in case else "" for key in _DRAWS)]
        for case in value["cases"]
    ]
    return markdown.table(("ms", *_DRAWS.values()), rows)


_DRAWS = {"cold": "cold", "warm": "warm", "after_pause": "after a pause"}


def _guidance_interval(value: dict[str, Any]) -> str:
    rows = [
        [
            case["interval"] or "full guidance",
            f"{case['guided']} of {case['calls']}",
            number(case["rows_ratio"]),
            spread(case["seconds"]),
            spread(case["time_ratio"]),
        ]
        for case in value["cases"]
    ]
    return markdown.table(("interval", "guided calls", "rows, ratio", "s/image", "time, ratio"), rows)


def _plans(value: dict[str, Any]) -> str:
    rows = [
        [f"{c['sampler']}, {c['levels']}", str(c["calls"]), spread(c["cold_ms"]), spread(c["again_ms"])]
        for c in value["cases"]
    ]
    return markdown.table(("sampler, levels", "calls", "cold, ms", "again, ms"), rows)


def _full_size(value: dict[str, Any]) -> str:
    comparison = value["comparison"]
    stages = markdown.table(
        ("stage", "s", "peak, GB"),
        [
            [name, number(stage["seconds"]), f"{stage['peak_rss_bytes'] / 1e9:.2f}"]
            for name, stage in value["stages"].items()
        ],
    )
    ratios = comparison["diffusers_over_sd2rt"]
    psnr = comparison["psnr_db"]
    rows = [
        ["sd2rt, s/step", spread(comparison["sd2rt"]["seconds_per_step"])],
        ["diffusers, s/step", spread(comparison["diffusers"]["seconds_per_step"])],
        ["diffusers / sd2rt, step", spread(ratios["seconds_per_step"])],
        ["diffusers / sd2rt, image", spread(ratios["seconds_per_image"])],
        ["images off by, of 255", comparison["max_pixel"]],
        ["PSNR, dB", "equal" if psnr is None else f"{psnr:.1f}"],
    ]
    head = f"{value['configs']}, {_size(value['size_px'])}, {value['steps']} steps."
    return "\n\n".join((head, stages, markdown.table(("", ""), rows)))


def _engine_builds(results: Results, folder: Path) -> str:
    newest = list(results.each("engine-builds", lambda value: tuple(value["variants"])))
    rows = [
        [
            f"{name}: {engine['part']} {engine['label']}, {engine['precision']}",
            number(engine["seconds"]),
            f"{engine['peak_bytes'] / 1e9:.2f}",
            f"{engine['bytes'] / 1e6:.0f}",
            f"{engine['fused']} of {engine['attentions']}",
        ]
        for result in newest
        for name, variant in result.value["variants"].items()
        for engine in variant["engines"]
    ]
    header = ("", "build, s", "peak, GB", "engine, MB", "fused attention")
    return "\n\n".join(
        (markdown.table(header, rows), "\n\n".join(origin(result, folder) for result in newest))
    )


def _variants(results: Results, folder: Path) -> str:
    newest = list(results.each("variants-cpu", lambda value: tuple(value["variants"])))
    rows = [
        [
            name,
            f"{sum(variant['parameters'].values()) / 1e6:.0f}",
            f"{variant['bytes'] / 1e9:.2f}",
            number(variant["stages"]["build"]["seconds"]),
            f"{variant['stages']['build']['peak_rss_bytes'] / 1e9:.2f}",
            number(variant["image_seconds"]),
            f"{variant['stages']['one step']['peak_rss_bytes'] / 1e9:.2f}",
        ]
        for result in newest
        for name, variant in result.value["variants"].items()
    ]
    header = ("", "parameters, M", "bundle, GB", "build, s", "build, GB", "image of one step, s", "run, GB")
    return "\n\n".join(
        (markdown.table(header, rows), "\n\n".join(origin(result, folder) for result in newest))
    )


def _demo_scores(results: Results, folder: Path) -> str:
    def sets(value: dict[str, Any]) -> frozenset[str]:
        return frozenset(score["set"] for score in value["scores"])

    # Sets may be measured in several runs: keep a run unless later runs cover all of its sets.
    kept: list[Result] = []
    for result in sorted(results.each("demo-draws", sets), key=lambda result: result.date, reverse=True):
        if not sets(result.value) <= frozenset().union(*(sets(later.value) for later in kept)):
            kept.append(result)
    return "\n\n".join(_with_origin(result, folder, score_table) for result in reversed(kept))


SECTIONS: dict[str, Section] = {
    "bench": _bench,
    "peers_full": _newest("peers-full", _peers),
    "peers_small": _newest("peers-small", _peers),
    "peers_demo": _newest("peers-demo", _peers),
    "first_image": _newest("first-image", _first_image),
    "roofline_full": _newest("roofline-full", _roofline),
    "roofline_demo": _newest("roofline-demo", _roofline),
    "scaling_full": _scaling("scaling-full"),
    "scaling_demo": _scaling("scaling-demo"),
    "startup": _newest("startup", _startup),
    "host_overhead": _newest("host-overhead", _host_overhead),
    "cuda_forms": _newest("cuda-forms", cuda_forms),
    "noise": _newest("noise", _noise),
    "guidance_interval": _newest("guidance-interval", _guidance_interval),
    "plans": _newest("plans", _plans),
    "full_size": _newest("full-size-cpu", _full_size),
    "engine_builds": _engine_builds,
    "variants": _variants,
    "prediction": prediction.verdict,
    "prediction_times": prediction.times,
    "prediction_kinds": prediction.kinds,
    "prediction_earlier": prediction.earlier,
    "prediction_check": prediction.check,
    "prediction_assumptions": prediction.assumptions,
    "demo_draws": _demo_scores,
    "demo_settings": _newest("demo-settings", settings_table),
}
"""By the placeholder in performance.md.in."""
