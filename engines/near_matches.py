"""Names similar to one that was mistyped."""

from __future__ import annotations

from collections.abc import Iterable

_MOST = 3


def near_matches(word: str, names: Iterable[str]) -> list[str]:
    """Return up to three names similar to a word, the most similar first; upper and lower case are alike."""
    # Imported where a name was mistyped.
    from difflib import get_close_matches

    by_letters: dict[str, str] = {}
    for name in names:
        by_letters.setdefault(name.casefold(), name)
    return [by_letters[match] for match in get_close_matches(word.casefold()[:200], by_letters, _MOST)]


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Sentence with the names similar to a word, ending in a space; empty if there are none."""
    near = near_matches(word, names)
    return f"did you mean {' or '.join(near)}? " if near else ""
