"""Foreign text made safe to print: from manifests, image files, checkpoints, paths and native libraries."""

from __future__ import annotations


def printable(text: object) -> str:
    """Return a text with its unprintable characters as backslash escapes, in one line.

    Escape codes, C1 controls, line and paragraph separators, bidirectional overrides, invisible characters and lone
    surrogates would move a terminal's cursor, hide or reorder the text, or fail to be encoded.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shown(text: str, limit: int = 60) -> str:
    """Shorten a value to ``limit`` characters, and make it printable."""
    return printable(text) if len(text) <= limit else f"{printable(text[:limit])}…"


def repr_of(value: object) -> str:
    """Return the repr of any value, or its type if it has none: an integer can have too many digits."""
    try:
        return repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"


def is_text(text: str) -> bool:
    """Return whether a text is valid Unicode: Python decodes invalid UTF-8 and JSON's escapes to lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
