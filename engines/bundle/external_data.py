"""Find the external data files that an ONNX graph names, without the onnx package.

A runtime reads whatever file a graph names, so every name must be in the manifest, whose files are verified.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import BundleError

# Messages of onnx.proto on the way to a tensor's external data, and their fields that hold other such messages.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
_LOCATION = b"location"
_VARINT, _FIXED_64, _BYTES, _GROUP, _END_GROUP, _FIXED_32 = range(6)


def external_locations(graph: Path) -> tuple[str, ...]:
    """Names of the external data files in an ONNX file, as written there: of initialisers, of tensors in attributes,
    and of those in subgraphs and functions.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no sound protocol buffer, and may name a file.
    """
    content = graph.read_bytes()
    try:
        return tuple(sorted(_locations(content)))
    except (IndexError, ValueError):
        # Every runtime refuses it; in case one does not, it must not get a name past this check.
        if _LOCATION in content:
            raise ValueError("it is not a sound ONNX graph") from None
        return ()


def check_locations(bundle: Path, part: Part, graph: str, locations: tuple[str, ...]) -> None:
    """Check that the files that a graph of a part names are among the part's.

    Raises:
        BundleError: the manifest does not list one of them.
    """
    listed = {file.path for file in part.files}
    for location in locations:
        if posixpath.normpath(posixpath.join(posixpath.dirname(graph), location)) not in listed:
            raise BundleError(
                f"{bundle / graph} reads {location!r}, which its manifest does not list: "
                "copy or build the bundle again"
            )


def is_graph(path: str, part: Part) -> bool:
    """Return whether a file of a part is an ONNX graph, by its name or its role."""
    return path.endswith(".onnx") or path in (part.onnx, part.onnxruntime)


def _locations(content: bytes) -> set[str]:
    found: set[str] = set()
    # A stack, because subgraphs may be nested deeper than Python's recursion limit.
    messages = [("model", 0, len(content))]
    while messages:
        kind, position, end = messages.pop()
        fields = _FIELDS[kind]
        keys: list[bytes] = []
        values: list[bytes] = []
        while position < end:
            tag, position = _varint(content, position)
            field, wire = (tag & 0xFFFFFFFF) >> 3, tag & 7
            if wire != _BYTES:
                position = _skip(content, position, wire)
                continue
            length, position = _varint(content, position)
            start, position = position, position + length
            inner = fields.get(field)
            if inner is None:
                continue
            if position > end:
                raise ValueError
            if inner == "key":
                keys.append(content[start:position])
            elif inner == "value":
                values.append(content[start:position])
            else:
                messages.append((inner, start, position))
        if position > end:
            raise ValueError
        # Of repeated fields a parser keeps the last: all count here.
        if _LOCATION in keys:
            found.update(value.decode(errors="backslashreplace") for value in values or [b""])
    return found


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = content[position]
    if value < 0x80:
        return value, position + 1
    value &= 0x7F
    for index in range(1, 10):
        byte = content[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError


def _skip(content: bytes, position: int, wire: int) -> int:
    """Position after a field that is not a message; groups are obsolete, but parsers still skip them."""
    depth = 0
    while True:
        if wire == _VARINT:
            _, position = _varint(content, position)
        elif wire == _FIXED_64:
            position += 8
        elif wire == _FIXED_32:
            position += 4
        elif wire == _BYTES:
            length, position = _varint(content, position)
            position += length
        elif wire == _GROUP:
            depth += 1
        elif wire == _END_GROUP and depth:
            depth -= 1
        else:
            raise ValueError
        if not depth:
            return position
        tag, position = _varint(content, position)
        wire = tag & 7
