"""Values by regular expressions on layers' paths, as PEFT matches its ``alpha_pattern`` and ``rank_pattern``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

from sd2rt.engines.printable import shown

_PLAIN = re.compile(r"\^?([\w.]+)\$?")
_MOST = 4096
"""SD2's networks have some 900 layers, and PEFT writes at most one pattern for each."""
_MOST_EXPRESSIONS = 256
_LONGEST = 1000


class Patterns:
    """Values by pattern: the first whose pattern matches a whole path, or its end after a dot.

    The expressions come from a file. They run in Rust's regex crate, in linear time for any expression: Python's
    ``re`` can take years for a short one. It has neither lookarounds nor references to groups.

    Raises:
        ValueError: an expression is invalid or uses these, or there are too many.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        if len(values) > _MOST:
            raise ValueError(f"has {len(values)} patterns, more than the networks have layers")
        self._values = tuple(values.values())
        self._plain: dict[int, list[tuple[int, str, bool]]] = {}
        self._expressions: list[tuple[int, SchemaValidator]] = []
        for position, pattern in enumerate(values):
            plain = _PLAIN.fullmatch(pattern)
            if plain is not None:
                entry = (position, plain[1], pattern.startswith("^"))
                self._plain.setdefault(len(plain[1]), []).append(entry)
            else:
                self._expressions.append((position, _compiled(pattern)))
        if len(self._expressions) > _MOST_EXPRESSIONS:
            raise ValueError(
                f"has {len(self._expressions)} regular expressions, the limit is {_MOST_EXPRESSIONS}: list the layers"
            )

    def value(self, paths: Sequence[str], default: float) -> float:
        """Return the value of the first pattern that matches one of a layer's paths."""
        found = [position for path in paths for position in self._matches(path)]
        return self._values[min(found)] if found else default

    def _matches(self, path: str) -> list[int]:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", path))]
        found = [
            position
            for start in starts
            for position, pattern, anchored in self._plain.get(len(path) - start, ())
            if _equal(pattern, path[start:]) and not (anchored and start)
        ]
        found += [position for position, expression in self._expressions if _search(expression, path)]
        return found


def _equal(pattern: str, text: str) -> bool:
    """Compare a text with a pattern of letters and dots, each of which stands for any character."""
    return pattern == text or all(
        wanted in (".", character) for wanted, character in zip(pattern, text, strict=True)
    )


def _compiled(pattern: str) -> SchemaValidator:
    if len(pattern) > _LONGEST:
        raise ValueError(f"{shown(repr(pattern))} is too long for a regular expression")
    try:
        # Python's syntax and Rust's differ in little; what either refuses is not a pattern of PEFT's.
        re.compile(pattern)
        return SchemaValidator(
            core_schema.str_schema(pattern=rf"^(?:.*\.)?(?:{pattern})$", regex_engine="rust-regex")
        )
    except (re.error, SchemaError, RecursionError, OverflowError):
        raise ValueError(
            f"{shown(repr(pattern))} is not a regular expression without lookarounds and references: list the layers"
        ) from None


def _search(expression: SchemaValidator, path: str) -> bool:
    try:
        expression.validate_python(path)
    except ValidationError:
        return False
    return True
