"""Prompts that change on the way, by AUTOMATIC1111's rules: ``AND``, ``[a:b:0.4]``, ``[a|b]``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_AND = re.compile(r"\bAND\b")
_SHARE = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*")
_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")
_WHEN = re.compile(r":\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*\]")


def compose(prompt: str) -> list[tuple[str, float]]:
    """The prompts that ``AND`` joins, each with its share of the guidance: ``a AND b:0.7``.

    A share is what follows the last colon, where it is a number and nothing comes after it; 1 where there is
    none. That holds for a prompt without ``AND`` too. ``AND`` is found anywhere, in brackets as well.
    """
    return [_shared(part) for part in _AND.split(prompt)]


def _shared(part: str) -> tuple[str, float]:
    text, colon, tail = part.rpartition(":")
    number = _SHARE.fullmatch(tail) if colon else None
    text = (text if number else part).rstrip()
    if "\n" in text.lstrip():
        # Of a text of several lines the share is not read.
        return part, 1.0
    return text, float(number[1]) if number else 1.0


@dataclass(frozen=True, slots=True)
class _Edit:
    """``before`` up to a call, ``after`` from then on."""

    before: Items
    after: Items
    when: str


@dataclass(frozen=True, slots=True)
class _Alternation:
    """One after the other, a call each."""

    options: tuple[Items, ...]


Items = Sequence["str | Items | _Edit | _Alternation"]
"""What a text is made of, in order."""


class EditedPrompt:
    """A prompt, and what it says at each call of a sampler.

    ``[a:b:when]`` says a first and b later, ``[b:when]`` says nothing first; ``when`` is a share of the calls
    if it has a point (``0.4``), else a step. ``[a|b|...]`` takes turns. Both can be nested and hold weights; in
    round brackets, weights' colons among them, they are found too. What looks like neither stays as it is typed,
    and so does all of a text with a ``|`` outside of ``[a|b]`` or a backslash with nothing to escape.
    Where brackets do not balance, what can be read as an edit is one; AUTOMATIC1111 leaves some of these as typed.

    As AUTOMATIC1111 counts from 0 and switches after the call that ``when`` names, the first text is said once
    more than its number, and the first of ``[a|b]`` twice.
    """

    def __init__(self, text: str) -> None:
        self._items: Items = _parse(text)

    def texts(self, calls: int, steps: int) -> tuple[str, ...]:
        """The text of each call.

        Args:
            calls: denoiser calls that there will be; a share of them is rounded down.
            steps: that were asked for, of which some samplers make two calls each: a step's number is of these.
        """
        return tuple(self._at(max(call, 1), calls, steps) for call in range(calls))

    def versions(self, calls: int, steps: int) -> tuple[str, ...]:
        """The texts that AUTOMATIC1111 encodes together, in order, equal ones as often as they come up."""
        ends = {calls}
        for item in self._walk():
            if isinstance(item, _Alternation):
                ends.update(range(1, calls + 1))
            elif (end := _call(item.when, calls, steps)) >= 1:
                ends.add(end)
        return tuple(self._at(end, calls, steps) for end in sorted(ends))

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

    def _at(self, number: int, calls: int, steps: int) -> str:
        """The text of the call of this number, counted from 1."""
        said, stack = [], list(reversed(self._items))
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                said.append(item)
                continue
            if isinstance(item, _Edit):
                item = item.before if number <= _call(item.when, calls, steps) else item.after
            elif isinstance(item, _Alternation):
                item = item.options[(number - 1) % len(item.options)]
            stack += reversed(item)
        return "".join(said)


def _call(when: str, calls: int, steps: int) -> int:
    """The last call, counted from 1, of what comes first."""
    number = float(when)
    share = number if "." in when else number / steps
    # A step's number is exact where every step is one call: no rounding may take it below itself.
    exact = share * calls if "." in when or calls != steps else number
    return int(max(0.0, min(exact, float(calls))))


def _parse(text: str) -> Items:
    groups: dict[int, tuple[Items | _Edit | _Alternation, int]] = {}
    # Backwards, so that the groups inside of one are known when it is read: no recursion, however deep.
    for start in range(len(text) - 1, -1, -1):
        if text[start] in "([" and (found := _group(text, start, groups)) is not None:
            groups[start] = found
    items: list[str | Items | _Edit | _Alternation] = []
    position = 0
    while position < len(text):
        found_items, end = _prompt(text, position, groups)
        items += found_items
        if end < len(text):
            if text[end] in "|\\":
                return [text]
            items.append(text[end])
        position = end + 1
    return items


def _prompt(
    text: str, start: int, groups: dict[int, tuple[Items | _Edit | _Alternation, int]]
) -> tuple[Items, int]:
    """What can be read from ``start`` on up to a character that has a meaning of its own, and where that is."""
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


def _group(
    text: str, start: int, groups: dict[int, tuple[Items | _Edit | _Alternation, int]]
) -> tuple[Items | _Edit | _Alternation, int] | None:
    """The brackets that open at ``start``, and where they are over; None where they are no group."""
    first, end = _prompt(text, start + 1, groups)
    mark = text[end : end + 1]
    if text[start] == "(":
        if mark == ":":
            second, end = _prompt(text, end + 1, groups)
            first = [first, ":", second]
        return (["(", first, ")"], end + 1) if text[end : end + 1] == ")" else None
    if mark == "]":
        return ["[", first, "]"], end + 1
    if mark == "|":
        options = [first]
        while text[end : end + 1] == "|":
            option, end = _prompt(text, end + 1, groups)
            options.append(option)
        return (_Alternation(tuple(options)), end + 1) if text[end : end + 1] == "]" else None
    if mark != ":":
        return None
    if (when := _WHEN.match(text, end)) is not None:
        return _Edit([], first, when[1]), when.end()
    second, end = _prompt(text, end + 1, groups)
    when = _WHEN.match(text, end)
    return None if when is None else (_Edit(first, second, when[1]), when.end())
