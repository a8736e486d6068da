"""ComfyUI's graphs: nodes by id, whose inputs are values or links to an output of another node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sd2rt.engines.json_text import parse_json

MAX_NODES = 5000
"""Workflows have up to some hundreds."""
_MAX_HOPS = 100
_VALUE_NAMES = (
    "value",
    "text",
    "string",
    "seed",
    "noise_seed",
    "int",
    "float",
    "number",
    "prompt",
    "Value",
    "String",
)
"""Inputs of nodes that hold one value for others."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node."""

    id: str
    kind: str
    """Its class."""
    inputs: dict[str, Any]


class Graph:
    """A graph that was run.

    Raises:
        ValueError: the text is not a graph.
    """

    def __init__(self, text: str) -> None:
        content = parse_json(text)
        if not isinstance(content, dict) or len(content) > MAX_NODES:
            raise ValueError("it is not a graph of nodes")
        self.nodes: dict[str, Node] = {}
        for name, node in content.items():
            if not isinstance(node, dict):
                continue
            kind, inputs = node.get("class_type"), node.get("inputs")
            if isinstance(kind, str) and isinstance(inputs, dict):
                self.nodes[name] = Node(name, kind, inputs)
        if not self.nodes:
            raise ValueError("it has no nodes")

    def linked(self, value: Any) -> Node | None:
        """Node that a link leads to, past nodes that only pass it on; None if it is not a link."""
        for _ in range(_MAX_HOPS):
            if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)):
                return None
            node = self.nodes.get(str(value[0]))
            if node is None or not node.kind.startswith("Reroute"):
                return node
            value = next(iter(node.inputs.values()), None)
        return None

    def source(self, node: Node, name: str) -> Node | None:
        """Node that an input is linked to, or None."""
        return self.linked(node.inputs.get(name))

    def value(self, node: Node, name: str) -> Any:
        """Value of an input, which may be linked to a node that holds one; None if it cannot be read."""
        value = node.inputs.get(name)
        for _ in range(_MAX_HOPS):
            if not isinstance(value, list):
                return None if isinstance(value, dict) else value
            holder = self.linked(value)
            if holder is None:
                return None
            if holder.kind == "StringConcatenate":
                parts = [self._text(holder, part) for part in ("string_a", "string_b")]
                return (
                    None if None in parts else str(holder.inputs.get("delimiter", "")).join(map(str, parts))
                )
            value = next((holder.inputs[key] for key in (name, *_VALUE_NAMES) if key in holder.inputs), None)
        return None

    def _text(self, node: Node, name: str) -> Any:
        """Value of an input, or of a holder's; concatenations are not followed further."""
        value = node.inputs.get(name)
        holder = self.linked(value)
        if holder is None:
            return value if isinstance(value, str) else None
        texts = (holder.inputs.get(key) for key in _VALUE_NAMES)
        return next((text for text in texts if isinstance(text, str)), None)

    def upstream(self, node: Node) -> Iterator[Node]:
        """Nodes that each input is linked to, in their order."""
        for name in node.inputs:
            source = self.source(node, name)
            if source is not None:
                yield source

    def path_to(self, node: Node, wanted: Callable[[Node], bool]) -> list[Node]:
        """Shortest path upstream from a node to one that is wanted, both included; empty if there is none."""
        came_from: dict[str, Node | None] = {node.id: None}
        waiting = deque([node])
        while waiting:
            current = waiting.popleft()
            if wanted(current):
                path = [current]
                while (previous := came_from[path[-1].id]) is not None:
                    path.append(previous)
                return path[::-1]
            for source in self.upstream(current):
                if source.id not in came_from:
                    came_from[source.id] = current
                    waiting.append(source)
        return []
