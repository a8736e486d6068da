"""Forms against the plain graph, for a denoiser of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.cuda_forms import operators as counts
from sd2rt.engines.bundle.model_kinds import KINDS
from sd2rt.export.graphs.cuda_forms.forms import DEFAULT_FORMS, FORMS, WITHOUT_CPU_KERNEL, apply_forms

from ..gpu_placement import memory_copies, optimised
from .graphs import PlainGraph, assert_near

BUNDLES: dict[str, str] = {
    **{kind: "small_bundle" if kind == "base" else f"small_{kind}_bundle" for kind in KINDS},
    "base-fp16": "small_half_bundle",
}


@pytest.fixture(scope="module", params=BUNDLES)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PlainGraph:
    bundle = Path(request.getfixturevalue(BUNDLES[request.param]))
    return PlainGraph(bundle, "denoiser", tmp_path_factory.mktemp("plain"))


ON_THE_CPU = [form for form in FORMS if form not in WITHOUT_CPU_KERNEL]
EXACT = tuple(form for form in ON_THE_CPU if form != "step-sums")


@pytest.mark.parametrize("forms", [*[(form,) for form in EXACT], EXACT])
def test_forms_of_standard_operators_give_the_same_bits(plain: PlainGraph, forms: tuple[str, ...]) -> None:
    before, model = counts(plain.model()), plain.model()
    apply_forms(model, forms)
    assert counts(model) != before
    if plain.part.precision == "fp32":
        actual, expected = plain.run(plain.in_forms(forms)), plain.run()
    elif forms == EXACT:
        # The CPU provider computes float16 in float32, and leaves out roundings as the graph allows.
        actual, expected = plain.reference(forms), plain.reference(())
    else:
        return
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("forms", [("step-sums",), DEFAULT_FORMS])
def test_sums_of_a_step_are_rounded_in_another_order(plain: PlainGraph, forms: tuple[str, ...]) -> None:
    model = plain.model()
    apply_forms(model, forms)
    assert counts(model)["ReduceSum"] == counts(plain.model())["ReduceSum"] + 3
    if plain.part.precision == "fp32":
        actual, expected = plain.run(plain.in_forms(forms)), plain.run()
    else:
        actual, expected = plain.reference(("step-sums",)), plain.reference(())
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize("forms", [("nhwc",), ("bias-split-gelu",), FORMS])
def test_forms_of_the_gpu_alone_compute_the_same(plain: PlainGraph, forms: tuple[str, ...]) -> None:
    if plain.part.precision == "fp32":
        assert_near(plain.reference(forms), plain.run())
    elif forms == FORMS:
        actual, expected = plain.reference(forms)[0], plain.reference(())[0]
        assert np.abs(actual - expected).max() <= 1e-2 * np.abs(expected).max()


def test_channels_change_their_place_twice_a_step(plain: PlainGraph) -> None:
    model = plain.model()
    before = counts(model)
    apply_forms(model, ("attention-3d", "nhwc"))
    after = counts(model)
    assert after["Transpose"] == 2
    assert (after["NhwcConv"], after["GroupNorm"]) == (before["Conv"], before["GroupNormalization"])
    assert after["Conv"] == after["GroupNormalization"] == 0
    # SiLU of the time embedding remains.
    assert after["Sigmoid"] == 2


@pytest.mark.parametrize("forms", [DEFAULT_FORMS, FORMS])
def test_nothing_is_copied_between_the_host_and_a_gpu(
    plain: PlainGraph, forms: tuple[str, ...], tmp_path: Path
) -> None:
    path = plain.in_forms(forms)
    if set(forms) & set(WITHOUT_CPU_KERNEL):
        # ONNX Runtime on the CPU cannot open the graph to optimise it.
        model = onnx.load(path, load_external_data=False)
    else:
        model = optimised(path, tmp_path / "optimised.onnx")
        assert not any("merged" in node.output[0] and node.op_type == "Concat" for node in model.graph.node)
    assert memory_copies(model) == []


def test_merged_weights_are_not_stored(plain: PlainGraph) -> None:
    model = plain.model()
    merged = apply_forms(model, FORMS)
    assert merged.nbytes > 0
    stored = set(model.graph.initializers)
    assert {source for constant in merged.constants for source in constant.sources} <= stored
    assert not {constant.name for constant in merged.constants} & stored
    # The graph's own constants are a few numbers of axes and places.
    added = stored - set(plain.model().graph.initializers)
    assert all(model.graph.initializers[name].const_value.nbytes <= 32 for name in added)


def test_an_unknown_form_is_refused(plain: PlainGraph) -> None:
    with pytest.raises(ValueError, match="no form is named 'nchw': choose from attention-3d, qkv"):
        apply_forms(plain.model(), ("nhwc", "nchw"))
