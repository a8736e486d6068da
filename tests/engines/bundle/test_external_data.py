from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sd2rt.engines.bundle.external_data import external_locations
from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import BundleError
from sd2rt.engines.weights.initializers import Weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(location: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=external(location), indices=external(location), dims=[2])


def in_initializer(graph: onnx.GraphProto, location: str) -> None:
    graph.initializer.append(external(location))


def in_sparse_initializer(graph: onnx.GraphProto, location: str) -> None:
    graph.sparse_initializer.append(sparse(location))


def in_attribute(field: str) -> Callable[[onnx.GraphProto, str], None]:
    def put(graph: onnx.GraphProto, location: str) -> None:
        attribute = graph.node.add(op_type="Constant", output=["y"]).attribute.add(name="value")
        value = sparse(location) if "sparse" in field else external(location)
        if field.endswith("s"):
            getattr(attribute, field).append(value)
        else:
            getattr(attribute, field).CopyFrom(value)

    return put


PLACES = {
    "initializer": in_initializer,
    "sparse initializer": in_sparse_initializer,
    **{field: in_attribute(field) for field in ("t", "tensors", "sparse_tensor", "sparse_tensors")},
}


def model_with(place: str, depth: int, root: str, location: str) -> onnx.ModelProto:
    """A model with an external tensor in ``place`` of a subgraph ``depth`` levels below the ``root``."""
    model = helper.make_model(helper.make_graph([], "main", [], []))
    graph = model.graph
    if root == "function":
        attribute = model.functions.add(name="f").node.add(op_type="If").attribute.add(name="then")
        graph = attribute.g
    elif root == "function attribute":
        graph = model.functions.add(name="f").attribute_proto.add(name="a").g
    elif root == "training":
        graph = model.training_info.add().algorithm
    for level in range(depth):
        attribute = graph.node.add(op_type="If").attribute.add(name="then_branch")
        graph = attribute.g if level % 2 else attribute.graphs.add()
    PLACES[place](graph, location)
    return model


@given(
    st.sampled_from(sorted(PLACES)),
    st.integers(0, 12),
    st.sampled_from(["graph", "function", "function attribute", "training"]),
    names,
)
def test_every_place_of_a_model(folder: Path, place: str, depth: int, root: str, location: str) -> None:
    path = folder / "model.onnx"
    path.write_bytes(model_with(place, depth, root, location).SerializeToString())
    assert external_locations(path) == (location,)


def test_encodings_that_only_a_parser_sees_through(tmp_path: Path) -> None:
    """A value before its key, lengths of more bytes than needed, unknown groups, and a graph in two pieces."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, 0x80 | len(content), 0x80, 0x00]) + content

    entry = field(2, b"secret") + b"\x2b\x08\x01\x2c" + field(1, b"location")
    tensor = field(13, entry)
    content = field(7, b"") + field(7, field(5, tensor))
    model = onnx.ModelProto.FromString(content)
    assert model.graph.initializer[0].external_data[0].value == "secret"
    (tmp_path / "model.onnx").write_bytes(content)
    assert external_locations(tmp_path / "model.onnx") == ("secret",)


@given(st.data())
def test_damaged_graphs_are_refused_or_keep_their_names(folder: Path, data: st.DataObject) -> None:
    """All names that ONNX's parser sees in a graph that it accepts are found."""
    content = bytearray(model_with("t", 1, "graph", "model.data").SerializeToString())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "model.onnx"
    path.write_bytes(content)
    try:
        found = set(external_locations(path))
    except ValueError:
        return
    try:
        model = onnx.ModelProto.FromString(bytes(content))
    except Exception:
        return
    assert locations_of(model) <= found


def locations_of(message: object) -> set[str]:
    if isinstance(message, TensorProto):
        return {entry.value for entry in message.external_data if entry.key == "location"}
    found: set[str] = set()
    for descriptor, value in getattr(message, "ListFields", list)():
        if descriptor.message_type is not None:
            for item in value if hasattr(value, "__iter__") else [value]:
                found |= locations_of(item)
    return found


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def rewrite(bundle: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a graph, and its size and hash in the manifest."""
    model = onnx.load(bundle / graph, load_external_data=False)
    change(model)
    onnx.save(model, bundle / graph)
    update(bundle, graph)


def update(bundle: Path, path: str) -> None:
    manifest = read_manifest(bundle)
    new = describe(bundle, path)
    parts = {
        name: part.model_copy(
            update={"files": tuple(new if file.path == path else file for file in part.files)}
        )
        for name, part in manifest.parts.items()
    }
    (bundle / "bundle.json").write_text(manifest.model_copy(update={"parts": parts}).to_json())


def move_weights(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    return change


def graphs_of(bundle: Path) -> list[str]:
    files = {file.path for file in read_manifest(bundle).files}
    return sorted(file for file in files if file.endswith(".onnx"))


def test_every_graph_of_a_bundle_is_checked(bundle: Path) -> None:
    """The unlisted file has the same weights: the bundle ran with it."""
    graphs = graphs_of(bundle)
    assert len(graphs) >= 7
    for graph in graphs:
        before = {path: (bundle / path).read_bytes() for path in (graph, "bundle.json")}
        shutil.copy(
            bundle / Path(graph).with_name("model.onnx.data"), bundle / Path(graph).with_name("extra")
        )
        rewrite(bundle, graph, move_weights("extra"))
        for _ in range(2):
            with pytest.raises(BundleError) as caught:
                open_bundle(bundle)
            assert str(caught.value) == (
                f"{bundle / graph} reads 'extra', which its manifest does not list: "
                "copy or build the bundle again"
            )
        for path, content in before.items():
            (bundle / path).write_bytes(content)
        open_bundle(bundle)


@pytest.mark.parametrize("location", ["/etc/passwd", "../../secret", "../tokenizer.json", "model\nonnx", "."])
def test_files_outside_the_part(bundle: Path, location: str) -> None:
    rewrite(bundle, "decoder/model.onnx", move_weights(location))
    with pytest.raises(BundleError, match="which its manifest does not list") as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_receipts_do_not_vouch_for_a_manifest_without_the_file(bundle: Path) -> None:
    open_bundle(bundle)
    manifest = read_manifest(bundle)
    part = manifest.parts["decoder"]
    fewer = part.model_copy(update={"files": tuple(f for f in part.files if not f.path.endswith(".data"))})
    parts = {**manifest.parts, "decoder": fewer}
    (bundle / "bundle.json").write_text(manifest.model_copy(update={"parts": parts}).to_json())
    with pytest.raises(BundleError, match="which its manifest does not list"):
        open_bundle(bundle)


def test_map_of_weights_that_names_another_file(bundle: Path) -> None:
    path = bundle / "denoiser" / "initializers.json"
    shutil.copy(bundle / "denoiser" / "model.onnx.data", bundle / "denoiser" / "other.data")
    path.write_text(path.read_text().replace('"file": "model.onnx.data"', '"file": "other.data"'))
    update(bundle, "denoiser/initializers.json")
    opened = open_bundle(bundle)
    with pytest.raises(BundleError, match=r"reads 'other.data', which the bundle's manifest does not list"):
        Weights.of(opened.part("denoiser"), opened.file(opened.part("denoiser").onnx))


def test_large_numbers_of_nested_graphs(tmp_path: Path) -> None:
    content = external("deep").SerializeToString()
    graph = b"\x2a" + _length(content) + content
    for _ in range(3000):
        attribute = b"\x32" + _length(graph) + graph
        node = b"\x2a" + _length(attribute) + attribute
        graph = b"\x0a" + _length(node) + node
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _length(graph) + graph)
    assert external_locations(tmp_path / "model.onnx") == ("deep",)


def _length(content: bytes) -> bytes:
    size, digits = len(content), []
    while size >= 0x80:
        digits.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*digits, size])


def test_weights_from_the_graph_itself(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph([], "main", [], [], [onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")])
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert external_locations(tmp_path / "model.onnx") == ()
