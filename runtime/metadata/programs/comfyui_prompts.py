"""ComfyUI's prompts in AUTOMATIC1111's syntax: weights, embeddings, and conditions that are joined."""

from __future__ import annotations

import re

from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.imported import ImportedSettings, file_stem
from sd2rt.runtime.metadata.programs.comfyui_graph import Graph, Node

_EMBEDDING = re.compile(r"\bembedding:([\w./\\-]*\w)")
_KEYWORD = re.compile(r"\b(?:AND|BREAK)\b")
_WEIGHT = re.compile(r"(?<!\\)\(")
_LONG = re.compile(r"\w+|[^\w\s]")
_MAY_BE_LONG = 40
"""Words and marks of a prompt that may have more than 75 tokens."""
_MAX_CONDITIONS = 50

_APPLIED_TO = ("conditioning", "positive", "conditioning_1", "conditioning_to", "cond1", "cond")
"""Inputs of other nodes that lead to their prompt."""
_CONTROLS = (
    "ControlNetApply",
    "ControlNetApplyAdvanced",
    "ACN_AdvancedControlNetApply",
    "ControlNetApplySD3",
)


class Prompts:
    """Prompts of a sampler, which leave their notes in the settings."""

    def __init__(self, graph: Graph, settings: ImportedSettings) -> None:
        self._graph = graph
        self._settings = settings
        self.text_nodes: list[Node] = []
        """Nodes that encoded a prompt."""

    def read(self, sampler: Node, side: str) -> str:
        """Prompt at an input of a sampler, ``positive`` or ``negative``."""
        source = self._graph.source(sampler, side)
        return "" if source is None else self._text(source, side, _MAX_CONDITIONS)

    def _note(self, note: str) -> None:
        if note not in self._settings.notes:
            self._settings.notes.append(note)

    def _text(self, node: Node, side: str, depth: int) -> str:
        if depth == 0:
            self._note(f"the {side} prompt has too many conditions: some are left out")
            return ""
        if node.kind == "ConditioningCombine":
            parts = self._parts(node, ("conditioning_1", "conditioning_2"), side, depth)
            if side == "positive" and len(parts) == 2:
                # All conditions of a list weigh the same, however they were combined.
                self._note("combined conditions are joined by AND, each with an equal share")
                pieces = [piece for part in parts for piece in part.split(" AND ")]
                shares = [re.sub(r" :[0-9.e-]+$", "", piece) for piece in pieces]
                return " AND ".join(f"{piece} :{1 / len(shares):.6g}" for piece in shares)
            return self._only_first(node, parts, side)
        if node.kind == "ConditioningConcat":
            parts = self._parts(node, ("conditioning_to", "conditioning_from"), side, depth)
            return " BREAK ".join(parts)
        if node.kind.startswith("CLIPTextEncode") or ("text" in node.inputs and "clip" in node.inputs):
            return self._encoded(node, side)
        if node.kind in _CONTROLS or "ControlNet" in node.kind:
            self._note(f"the ControlNet of {shown(node.kind)} is not applied")
        elif node.kind == "ConditioningZeroOut":
            self._note(f"the {side} condition of zeros is not available: an empty prompt is used")
            return ""
        else:
            self._note(f"{shown(node.kind)} is not applied to the {side} prompt")
        names = (side, *_APPLIED_TO) if side in node.inputs else _APPLIED_TO
        source = next((found for name in names if (found := self._graph.source(node, name))), None)
        return "" if source is None else self._text(source, side, depth - 1)

    def _parts(self, node: Node, names: tuple[str, ...], side: str, depth: int) -> list[str]:
        sources = [self._graph.source(node, name) for name in names]
        return [self._text(source, side, depth // 2) for source in sources if source is not None]

    def _only_first(self, node: Node, parts: list[str], side: str) -> str:
        if len(parts) > 1:
            self._note(f"{node.kind} of the {side} prompt is not supported: its first condition is used")
        return parts[0] if parts else ""

    def _encoded(self, node: Node, side: str) -> str:
        self.text_nodes.append(node)
        text = self._graph.value(node, "text")
        if not isinstance(text, str):
            self._note(f"the {side} prompt of {shown(node.kind)} cannot be read: it is made by another node")
            return ""
        return as_a1111(text, self._settings)


def as_a1111(text: str, settings: ImportedSettings) -> str:
    """Write a prompt in AUTOMATIC1111's syntax; its embeddings, and notes, go to the settings.

    Both weight ``(a cat:1.2)``. ComfyUI has no square brackets, AND and BREAK, and names embeddings by
    ``embedding:name``.
    """
    for name in _EMBEDDING.findall(text):
        stem = file_stem(name)
        if stem is not None and stem not in settings.embeddings:
            settings.embeddings.append(stem)
    text = _EMBEDDING.sub(lambda match: file_stem(match[1]) or "", text)
    # Its text encoder reads lower case; the keywords are upper case.
    text = _KEYWORD.sub(lambda match: match[0].lower(), text)
    text = re.sub(r"(?<!\\)([\[\]])", r"\\\1", text)
    program = settings.program
    notes = []
    if _WEIGHT.search(text):
        notes.append(
            f"weights of the prompt: {program} scales the distance from an empty prompt, here AUTOMATIC1111's rule "
            "is used; the picture differs"
        )
    if len(_LONG.findall(text)) > _MAY_BE_LONG:
        notes.append(
            f"a prompt of more than 75 tokens is divided at a comma near its end, in {program} at a word; the "
            "picture may differ"
        )
    settings.notes += [note for note in notes if note not in settings.notes]
    return text
