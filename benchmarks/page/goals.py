"""What is aimed at, and what was measured: every ratio is of two values of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.page import markdown
from benchmarks.page.latest import NotMeasuredError, Result, Results

_CORE = ("text_encoder", "denoiser", "decoder")
"""The parts that every image takes."""
_TOKEN_TABLE = 49408 * 1024
"""SD2's token embeddings: a bundle keeps them beside its graphs, so they are not among a part's parameters."""
_FULL_SIDE = 512


@dataclass(frozen=True, slots=True)
class Found:
    """A measured value, its spread, and the result that it is from."""

    value: Mapping[str, float]
    result: Result


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table."""

    what: str
    bound: float
    unit: str
    measure: Callable[[Results], Found]


def _once(value: float, result: Result) -> Found:
    return Found({"median": value, "min": value, "max": value}, result)


def _available(result: Result, precision: str) -> dict[str, Any]:
    peers = {
        name: peer
        for name, peer in result.value["peers"].items()
        if peer["available"] and peer["precision"] == precision
    }
    if not peers:
        raise NotMeasuredError(f"no {precision} peer in {result.path.name}")
    return peers


def _own(name: str) -> bool:
    return name == "sd2rt" or name.startswith("sd2rt-")


def _step(peer: Mapping[str, Any]) -> float:
    """Over diffusers' of the same round: peers that were never open together can be compared by it."""
    return float(peer["ratio"]["diffusers"]["seconds_per_step"]["median"])


def _fastest(peers: Mapping[str, Any], own: bool, what: str) -> tuple[str, Any]:
    found = {name: peer for name, peer in peers.items() if _own(name) == own}
    if not found:
        raise NotMeasuredError(what)
    return min(found.items(), key=lambda item: _step(item[1]))


def _fp32_step(results: Results) -> Found:
    """By the ratios to sd2rt in the same rounds: between other rounds the machine's own speed differs."""
    result = results.newest("peers-full")
    ratios = {
        name: peer["ratio"]["sd2rt"]["seconds_per_step"]
        for name, peer in _available(result, "fp32").items()
        if "sd2rt" in peer["ratio"]
    }
    theirs = [ratio for name, ratio in ratios.items() if not _own(name)]
    if not theirs:
        raise NotMeasuredError(f"no fp32 peer in {result.path.name}")
    fastest = min(theirs, key=lambda ratio: ratio["median"])
    own = min(ratio["median"] for name, ratio in ratios.items() if _own(name))
    if own >= 1:
        return Found(markdown.inverse(fastest), result)
    return _once(own / fastest["median"], result)


def _bf16_step(results: Results) -> Found:
    result = results.newest("peers-full")
    peers = _available(result, "bf16")
    _, ours = _fastest(peers, True, f"no sd2rt in bf16 in {result.path.name}")
    return Found(ours["ratio"]["diffusers"]["seconds_per_step"], result)


def _bf16_openvino(results: Results) -> Found:
    result = results.newest("peers-full")
    peers = _available(result, "bf16")
    _, ours = _fastest(peers, True, f"no sd2rt in bf16 in {result.path.name}")
    others = {name: peer for name, peer in peers.items() if "openvino" in name and not _own(name)}
    _, theirs = _fastest(others, False, f"no OpenVINO in bf16 in {result.path.name}")
    return _once(_step(ours) / _step(theirs), result)


def _first_image(key: str) -> Callable[[Results], Found]:
    def measure(results: Results) -> Found:
        result = results.newest("first-image")
        return Found(result.value["ratios"][key], result)

    return measure


def _is_full(value: dict[str, Any]) -> bool:
    return bool(value["bundle"]["precision"] == "fp32" and value["cases"][0]["width"] >= _FULL_SIDE)


def _opening(results: Results) -> Found:
    try:
        result = results.newest("bench", _is_full)
        return _once(result.value["opening"]["seconds"], result)
    except NotMeasuredError:
        result = results.newest("peers-full")
        return _once(_available(result, "fp32")["sd2rt"]["open_seconds"], result)


def _memory(results: Results) -> Found:
    """Of `sd2rt run` in full size, over four bytes for each parameter that an image takes, the token table's too."""
    full = results.newest("full-size-cpu")
    weights = 4 * (_TOKEN_TABLE + sum(full.value["parameters"][part] for part in _CORE))
    try:
        result = results.newest("bench", lambda value: _is_full(value) and bool(value["first_image"]))
        peak = result.value["first_image"]["peak_rss_bytes"]
    except NotMeasuredError:
        return _once(full.value["stages"]["run"]["peak_rss_bytes"] / weights, full)
    return Found({key: peak[key] / weights for key in ("median", "min", "max")}, result)


GOALS = (
    Goal("full-size step, fp32, over the fastest fp32 peer's", 1.0, "", _fp32_step),
    Goal("full-size step, bf16, over diffusers' in fp32", 0.3, "", _bf16_step),
    Goal("full-size step, bf16, over OpenVINO's own in bf16", 1.0, "", _bf16_openvino),
    Goal("demo, process start to first image, over diffusers'", 0.25, "", _first_image("seconds")),
    Goal("its peak memory, over diffusers'", 0.4, "", _first_image("peak_rss_bytes")),
    Goal("opening a full-size fp32 bundle", 3.0, " s", _opening),
    Goal("peak memory of a full-size run, over its weights, the token table among them", 1.25, "", _memory),
)


def goals(results: Results, folder: Path) -> str:
    """The table of goals; those that nothing was measured of say so."""
    return markdown.table(("", "goal", "measured", "reached", "from"), _rows(results, folder))


def _rows(results: Results, folder: Path) -> Iterator[list[str]]:
    for goal in GOALS:
        bound = f"<= {goal.bound:g}{goal.unit}"
        try:
            found = goal.measure(results)
        except (NotMeasuredError, KeyError):
            yield [goal.what, bound, "not measured yet", "", ""]
            continue
        source = f"[{found.result.path.name}]({markdown.link(found.result, folder)})"
        yield [
            goal.what,
            bound,
            markdown.spread(found.value) + goal.unit,
            verdict(found.value, goal.bound),
            source,
        ]


def verdict(value: Mapping[str, float], bound: float) -> str:
    """Whether the median holds a bound, and where it does not, whether some of what it is the median of does."""
    if value["median"] <= bound:
        return markdown.yes(True)
    return markdown.yes(False) + (", within its spread" if value["min"] <= bound else "")
