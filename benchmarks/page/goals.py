"""Performance goals and their measured values. Every ratio compares two values of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.page import markdown
from benchmarks.page.latest import NotMeasuredError, Result, Results

_CORE = ("text_encoder", "denoiser", "decoder")
"""Parts that every image uses."""
_TOKEN_TABLE = 49408 * 1024
"""Elements of SD2's token embeddings. A bundle stores them beside its graphs, outside any part's parameters."""
_FULL_SIDE = 512


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured value with its spread, and the result it comes from."""

    value: Mapping[str, float]
    result: Result


@dataclass(frozen=True, slots=True)
class Goal:
    """One row of the table."""

    label: str
    bound: float
    unit: str
    measure: Callable[[Results], Measurement]


def _single(value: float, result: Result) -> Measurement:
    return Measurement({"median": value, "min": value, "max": value}, result)


def _available(result: Result, precision: str) -> dict[str, Any]:
    peers = {
        name: peer
        for name, peer in result.value["peers"].items()
        if peer["available"] and peer["precision"] == precision
    }
    if not peers:
        raise NotMeasuredError(f"no {precision} peer in {result.path.name}")
    return peers


def _is_sd2rt(name: str) -> bool:
    return name == "sd2rt" or name.startswith("sd2rt-")


def _step(peer: Mapping[str, Any]) -> float:
    """Step time over diffusers' in the same round; it compares peers that were never open together."""
    return float(peer["ratio"]["diffusers"]["seconds_per_step"]["median"])


def _fastest(peers: Mapping[str, Any], of_sd2rt: bool, missing: str) -> tuple[str, Any]:
    candidates = {name: peer for name, peer in peers.items() if _is_sd2rt(name) == of_sd2rt}
    if not candidates:
        raise NotMeasuredError(missing)
    return min(candidates.items(), key=lambda item: _step(item[1]))


def _fp32_step(results: Results) -> Measurement:
    """Compare by ratios to sd2rt in the same rounds: the machine's speed drifts between rounds."""
    result = results.newest("peers-full")
    ratios = {
        name: peer["ratio"]["sd2rt"]["seconds_per_step"]
        for name, peer in _available(result, "fp32").items()
        if "sd2rt" in peer["ratio"]
    }
    peers = [ratio for name, ratio in ratios.items() if not _is_sd2rt(name)]
    if not peers:
        raise NotMeasuredError(f"no fp32 peer in {result.path.name}")
    fastest = min(peers, key=lambda ratio: ratio["median"])
    ours = min(ratio["median"] for name, ratio in ratios.items() if _is_sd2rt(name))
    if ours >= 1:
        return Measurement(markdown.inverse(fastest), result)
    return _single(ours / fastest["median"], result)


def _bf16_step(results: Results) -> Measurement:
    result = results.newest("peers-full")
    peers = _available(result, "bf16")
    _, ours = _fastest(peers, True, f"no sd2rt in bf16 in {result.path.name}")
    return Measurement(ours["ratio"]["diffusers"]["seconds_per_step"], result)


def _bf16_openvino(results: Results) -> Measurement:
    result = results.newest("peers-full")
    peers = _available(result, "bf16")
    _, ours = _fastest(peers, True, f"no sd2rt in bf16 in {result.path.name}")
    openvino_peers = {
        name: peer for name, peer in peers.items() if "openvino" in name and not _is_sd2rt(name)
    }
    _, theirs = _fastest(openvino_peers, False, f"no OpenVINO in bf16 in {result.path.name}")
    return _single(_step(ours) / _step(theirs), result)


def _first_image(key: str) -> Callable[[Results], Measurement]:
    def measure(results: Results) -> Measurement:
        result = results.newest("first-image")
        return Measurement(result.value["ratios"][key], result)

    return measure


def _is_full(value: dict[str, Any]) -> bool:
    return bool(value["bundle"]["precision"] == "fp32" and value["cases"][0]["width"] >= _FULL_SIDE)


def _opening(results: Results) -> Measurement:
    try:
        result = results.newest("bench", _is_full)
        return _single(result.value["opening"]["seconds"], result)
    except NotMeasuredError:
        result = results.newest("peers-full")
        return _single(_available(result, "fp32")["sd2rt"]["open_seconds"], result)


def _memory(results: Results) -> Measurement:
    """Peak memory of a full-size `sd2rt run` over four bytes per parameter an image uses, with the token table."""
    full = results.newest("full-size-cpu")
    weights = 4 * (_TOKEN_TABLE + sum(full.value["parameters"][part] for part in _CORE))
    try:
        result = results.newest("bench", lambda value: _is_full(value) and bool(value["first_image"]))
        peak = result.value["first_image"]["peak_rss_bytes"]
    except NotMeasuredError:
        return _single(full.value["stages"]["run"]["peak_rss_bytes"] / weights, full)
    return Measurement({key: peak[key] / weights for key in ("median", "min", "max")}, result)


GOALS = (
    Goal("full-size step, fp32, over the fastest fp32 peer's", 1.0, "", _fp32_step),
    Goal("full-size step, bf16, over diffusers' in fp32", 0.3, "", _bf16_step),
    Goal("full-size step, bf16, over OpenVINO's own in bf16", 1.0, "", _bf16_openvino),
    Goal("demo, process start to first image, over diffusers'", 0.25, "", _first_image("seconds")),
    Goal("demo, peak memory to first image, over diffusers'", 0.4, "", _first_image("peak_rss_bytes")),
    Goal("opening a full-size fp32 bundle", 3.0, " s", _opening),
    Goal("peak memory of a full-size run, over its weights including the token table", 1.25, "", _memory),
)


def goals(results: Results, folder: Path) -> str:
    """Render the table of goals; a goal without a result reads "not measured yet"."""
    return markdown.table(("", "goal", "measured", "reached", "from"), _rows(results, folder))


def _rows(results: Results, folder: Path) -> Iterator[list[str]]:
    for goal in GOALS:
        bound = f"<= {goal.bound:g}{goal.unit}"
        try:
            measurement = goal.measure(results)
        except (NotMeasuredError, KeyError):
            yield [goal.label, bound, "not measured yet", "", ""]
            continue
        source = f"[{measurement.result.path.name}]({markdown.link(measurement.result, folder)})"
        yield [
            goal.label,
            bound,
            markdown.spread(measurement.value) + goal.unit,
            verdict(measurement.value, goal.bound),
            source,
        ]


def verdict(value: Mapping[str, float], bound: float) -> str:
    """Say if the median meets a bound and, if not, if the smallest value does."""
    if value["median"] <= bound:
        return markdown.yes(True)
    return markdown.yes(False) + (", within its spread" if value["min"] <= bound else "")
