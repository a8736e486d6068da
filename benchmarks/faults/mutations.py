"""Random changes of JSON documents and of Python arguments: types, ranges, shapes, names, and extreme numbers."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        3,
        7,
        8,
        63,
        64,
        77,
        100,
        1000,
        4097,
        2**31 - 1,
        2**31,
        2**32,
        2**53,
        2**63,
        2**64,
        -(2**63),
    ),
    *(
        10**18,
        10**30,
        10**400,
        -(10**400),
        0.0,
        -0.0,
        0.5,
        1.5,
        1e-320,
        5e-324,
        1e-300,
        1e-38,
        1e-9,
        1e9,
        1e38,
    ),
    *(1e300, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
TEXTS: tuple[str, ...] = (
    *(
        "",
        " ",
        "a",
        "none",
        "B",
        "8*h",
        "0*h",
        "-1",
        "1e400",
        "float32",
        "int64",
        "bool",
        "fp16",
        "demo",
        ".",
        "..",
        "/",
    ),
    *(
        "../../etc/passwd",
        "/dev/null",
        "/proc/self/mem",
        "a" * 300,
        "a/" * 200,
        "\x1b[31mred",
        "\x9b2J",
        "\x85",
        "\n",
    ),
    *(
        "\u202eevil",
        "\u2028",
        "\x00",
        "\x7f",
        "\ud800",
        "\udcff",
        "灯台",
        "é",
        "%s%n",
        "{0}",
        "[red]x[/red]",
        "NaN",
        "null",
    ),
)
CONTAINERS: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [1, 2, 3],
    [0, 0],
    {"name": "x"},
    ["B", 4, "h", "w"],
)


def odd_value(random: Random) -> Any:
    """Draw a value of any JSON type, most often a number or text from the ends of its range."""
    pool = random.choice((NUMBERS, NUMBERS, TEXTS, TEXTS, CONTAINERS, (None, True, False)))
    return copy.deepcopy(random.choice(pool))


def mutated(content: Any, random: Random) -> tuple[Any, str]:
    """Change one to three places of a JSON value. Returns a changed copy, and the changes in words."""
    content = copy.deepcopy(content)
    changes = [_mutate(content, random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    return content, "; ".join(changes)


def mutated_manifest(content: dict[str, Any], random: Random) -> tuple[dict[str, Any], str]:
    """Change one to three places of a manifest, nearly always with the checksum of the result."""
    from sd2rt.engines.bundle.checksum import CHECKSUM, checksum

    changed, changes = mutated(content, random)
    if CHECKSUM in changed and random.random() < 0.95:
        changed[CHECKSUM] = checksum(changed)
    return changed, changes


def _mutate(content: Any, random: Random) -> str:
    places = [place for place in _places(content) if place]
    # Sections are long and short: a section first, then a place in it.
    section = random.choice(sorted({place[0] for place in places}, key=str))
    place = random.choice([place for place in places if place[0] == section])
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    key = place[-1]
    where, kind = ".".join(map(str, place)), random.randrange(12)
    if kind == 0:
        del parent[key]
        return f"{where} removed"
    if kind == 1 and isinstance(parent, dict):
        name = random.choice(TEXTS)
        parent[name] = parent.pop(key)
        return f"{where} renamed {name!r}"
    if kind == 2 and isinstance(parent, list):
        parent.insert(random.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
        return f"{where} repeated"
    if kind == 3 and isinstance(parent, list):
        random.shuffle(parent)
        return f"{where} and its neighbours in another order"
    if kind == 4 and isinstance(parent[key], int) and not isinstance(parent[key], bool):
        parent[key] += random.choice((-1, 1, 2, 64, -64))
        return f"{where} = {parent[key]}"
    if kind in (5, 6):
        # The value of another place: of the right type more often than any other.
        other = content
        for step in random.choice(places):
            other = other[step]
        parent[key] = copy.deepcopy(other)
        return f"{where} = {json.dumps(other)[:80]}"
    if kind == 7:
        depth = random.choice((3, 70, 400))
        nested: Any = parent[key]
        for _ in range(depth):
            nested = [nested]
        parent[key] = nested
        return f"{where} nested {depth} deep"
    parent[key] = odd_value(random)
    return f"{where} = {repr(parent[key])[:80] if not _is_long(parent[key]) else 'a number of 401 digits'}"


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > 10**100


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Keys of all values inside a JSON value; those in deep nests of an earlier change are left out."""
    places = [place]
    if len(place) < 10 and isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            places += _places(item, (*place, key))
    return places
