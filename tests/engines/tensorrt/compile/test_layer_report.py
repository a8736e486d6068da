"""Layers and tensors parsed from a backend's log."""

from __future__ import annotations

from sd2rt.engines.tensorrt.compile.layer_report import BuiltTensor, parse_log

LOG = (
    "Layers:\n"
    "Name: __myl_Reshape_myl0_0, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [2,64] }], Constants: [], "
    "Outputs: [ { Name: y, Dimensions: [64] }], TacticName: __myl_Reshape_0x12, StreamId: 0, "
    "Metadata: [ONNX Layer: node_view]\x1f[ONNX Layer: node_view]\x1f[ONNX Layer: node_add]\n"
    "Name: _gemm_mha_v2_myl0_1, LayerType: kgen, Inputs: [], Outputs: [], TacticName: _gemm_mha_v2_0x3, StreamId: 0, "
    "Metadata: [ONNX Layer: node_attention]\n"
    "Name: node_linear_1+node_linear_myl0_2, LayerType: gemm, Inputs: [], Outputs: [], TacticName: , StreamId: 0, "
    "Metadata: \n"
    "\nI/O Tensors:\n"
    " Name: state, IOMode: Input, DataType: Float, Dimensions: [-1,5,16], Location: Device, ProfileInfo: "
    "[ { MinShape: [1,5,16], OptShape: [1,5,16], MaxShape: [4,5,16], Format: linear }, "
    "{ MinShape: [5,5,16], OptShape: [8,5,16], MaxShape: [8,5,16], Format: linear }]\n"
    " Name: finite, IOMode: Output, DataType: UInt8, Dimensions: [-1], Location: Device, ProfileInfo: [ { Format }]\n"
    "\nEngine Metadata:\n Multi-Device: Disabled"
)


def test_layers_and_tensors() -> None:
    report = parse_log(["Layers:\nName: part, LayerType: kgen, TacticName: , Metadata: ", LOG])
    assert report is not None
    assert [(layer.name, layer.kind, layer.onnx) for layer in report.layers] == [
        ("__myl_Reshape_myl0_0", "kgen", ("node_view", "node_add")),
        ("_gemm_mha_v2_myl0_1", "kgen", ("node_attention",)),
        ("node_linear_1+node_linear_myl0_2", "gemm", ()),
    ]
    assert report.fused_attention == 1
    first, second = ((1, 5, 16), (1, 5, 16), (4, 5, 16)), ((5, 5, 16), (8, 5, 16), (8, 5, 16))
    assert report.tensors == (
        BuiltTensor("state", True, "float32", (-1, 5, 16), (first, second)),
        BuiltTensor("finite", False, "uint8", (-1,)),
    )


def test_a_log_without_layers() -> None:
    assert parse_log(["Engine generation completed in 12 seconds."]) is None
