"""Parse composition and prompt edits in AUTOMATIC1111's syntax: ``AND``, ``[a:b:0.4]``, ``[a|b]``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_AND = re.compile(r"\bAND\b")
_SHARE = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*")
_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")
_WHEN = re.compile(r":\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*\]")


def compose(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt at ``AND`` into prompts with their shares of the guidance: ``a AND b:0.7``.

    A share is a number after the last colon, at the end of the part; without one it is 1. This also applies to a
    prompt without ``AND``. ``AND`` is matched inside brackets too.
    """
    return [_split_share(part) for part in _AND.split(prompt)]


def _split_share(part: str) -> tuple[str, float]:
    text, colon, tail = part.rpartition(":")
    number = _SHARE.fullmatch(tail) if colon else None
    return (text if number else part).rstrip(), float(number[1]) if number else 1.0


@dataclass(frozen=True, slots=True)
class _Edit:
    """``[a:b:when]``: ``before`` up to a call, ``after`` from then on."""

    before: Items
    after: Items
    when: str


@dataclass(frozen=True, slots=True)
class _Alternation:
    """``[a|b]``: one option per call, in turn."""

    options: tuple[Items, ...]


Items = Sequence["str | Items | _Edit | _Alternation"]
"""A parsed text: its pieces in order."""


class EditedPrompt:
    """A prompt whose text can change from call to call of a sampler.

    ``[a:b:when]`` is a first and b later; ``[b:when]`` is empty first. ``when`` is a fraction of all calls if it has
    a decimal point (``0.4``), else a number of calls. ``[a|b|...]`` alternates from call to call. Both can be nested,
    contain weights, and be inside round brackets, also before a weight's colon. Other text is unchanged. A text with
    a ``|`` outside ``[a|b]``, or a backslash with nothing to escape, is unchanged as a whole. If brackets do not
    balance, everything that can be parsed as an edit is one; AUTOMATIC1111 leaves some of these unchanged.

    AUTOMATIC1111 counts from 0 and switches after the call that ``when`` names. So the first text lasts one call
    longer than its number, and the first option of ``[a|b]`` is used twice. It takes all calls to be the steps, or
    twice the steps for samplers that evaluate the network twice, also if fewer are made, as in image-to-image.
    """

    def __init__(self, text: str) -> None:
        self._items: Items = _parse(text)

    def texts(self, calls: int, nominal_calls: int) -> tuple[str, ...]:
        """Compute the text of each call.

        Args:
            calls: number of denoiser calls that are made.
            nominal_calls: number of calls that AUTOMATIC1111 counts: requested steps, times evaluations per step.
        """
        return tuple(self._text_at(min(max(call, 1), nominal_calls), nominal_calls) for call in range(calls))

    def versions(self, nominal_calls: int) -> tuple[str, ...]:
        """List the texts that AUTOMATIC1111 encodes together, in order, including duplicates."""
        ends = {nominal_calls}
        for item in self._walk():
            if isinstance(item, _Alternation):
                ends.update(range(1, nominal_calls + 1))
            elif (end := _last_call_before(item.when, nominal_calls)) >= 1:
                ends.add(end)
        return tuple(self._text_at(end, nominal_calls) for end in sorted(ends))

    def _walk(self) -> Iterator[_Edit | _Alternation]:
        stack = [self._items]
        while stack:
            for item in stack.pop():
                if isinstance(item, _Edit):
                    yield item
                    stack += [item.before, item.after]
                elif isinstance(item, _Alternation):
                    yield item
                    stack += item.options
                elif not isinstance(item, str):
                    stack.append(item)

    def _text_at(self, number: int, nominal_calls: int) -> str:
        """Build the text of a call, counted from 1."""
        pieces, stack = [], list(reversed(self._items))
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                pieces.append(item)
                continue
            if isinstance(item, _Edit):
                item = item.before if number <= _last_call_before(item.when, nominal_calls) else item.after
            elif isinstance(item, _Alternation):
                item = item.options[(number - 1) % len(item.options)]
            stack += reversed(item)
        return "".join(pieces)


def _last_call_before(when: str, nominal_calls: int) -> int:
    """Compute the last call before an edit, counted from 1."""
    number = float(when) * (nominal_calls if "." in when else 1)
    return int(max(0.0, min(number, float(nominal_calls))))


def _parse(text: str) -> Items:
    groups: dict[int, tuple[Items | _Edit | _Alternation, int]] = {}
    # Backwards, so that inner groups are parsed before outer ones, without recursion at any depth.
    for start in range(len(text) - 1, -1, -1):
        if text[start] in "([" and (group := _parse_group(text, start, groups)) is not None:
            groups[start] = group
    items: list[str | Items | _Edit | _Alternation] = []
    position = 0
    while position < len(text):
        parsed, end = _parse_items(text, position, groups)
        items += parsed
        if end < len(text):
            if text[end] in "|\\":
                return [text]
            items.append(text[end])
        position = end + 1
    return items


def _parse_items(
    text: str, start: int, groups: dict[int, tuple[Items | _Edit | _Alternation, int]]
) -> tuple[Items, int]:
    """Parse items from ``start`` up to the next special character; return them and its position."""
    items: list[str | Items | _Edit | _Alternation] = []
    position = start
    while True:
        if position in groups:
            item, position = groups[position]
            items.append(item)
        elif (plain := _PLAIN.match(text, position)) is not None:
            items.append(plain[0])
            position = plain.end()
        else:
            return items, position


def _parse_group(
    text: str, start: int, groups: dict[int, tuple[Items | _Edit | _Alternation, int]]
) -> tuple[Items | _Edit | _Alternation, int] | None:
    """Parse the bracketed group that opens at ``start``, and its end; None if it is not a group."""
    first, end = _parse_items(text, start + 1, groups)
    mark = text[end : end + 1]
    if text[start] == "(":
        if mark == ":":
            second, end = _parse_items(text, end + 1, groups)
            first = [first, ":", second]
        return (["(", first, ")"], end + 1) if text[end : end + 1] == ")" else None
    if mark == "]":
        return ["[", first, "]"], end + 1
    if mark == "|":
        options = [first]
        while text[end : end + 1] == "|":
            option, end = _parse_items(text, end + 1, groups)
            options.append(option)
        return (_Alternation(tuple(options)), end + 1) if text[end : end + 1] == "]" else None
    if mark != ":":
        return None
    if (when := _WHEN.match(text, end)) is not None:
        return _Edit([], first, when[1]), when.end()
    second, end = _parse_items(text, end + 1, groups)
    when = _WHEN.match(text, end)
    return None if when is None else (_Edit(first, second, when[1]), when.end())
