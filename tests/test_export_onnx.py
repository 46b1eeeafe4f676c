"""What onnxruntime makes of the exported files; they need `pip install '.[export]'`."""

import numpy as np
import pytest
import torch
from small_models import MASK2FORMER, small_model

from fastinst.errors import InputError
from fastinst.export.artefact import read_onnx
from fastinst.export.metadata import KEY, Metadata
from fastinst.export.program import OUTPUTS, least_edge, trace

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from fastinst.export.onnx_file import KEPT, to_onnx  # noqa: E402

CPU = torch.device("cpu")


def write(model, shape, dtype="float32", opset=19):
    metadata = Metadata(model.config, ("a", "b", "c"), None, shape, dtype)
    program = trace(model, shape, getattr(torch, dtype), KEPT)
    return to_onnx(program, opset, {KEY: metadata.to_json()})


def assert_same(model, content, batch):
    artefact = read_onnx(content, CPU, "x")
    with torch.no_grad():
        expected = model(batch)
    found = artefact(batch)
    assert found.keys() == expected.keys()
    for name, actual in found.items():
        torch.testing.assert_close(actual, expected[name], rtol=1e-4, atol=5e-5)


def test_deformable_convolutions_in_standard_operators(monkeypatch):
    model = small_model(monkeypatch, deformable=True)
    content = write(model, (1, 64, 96))
    file = onnx.load_from_string(content)
    onnx.checker.check_model(file, full_check=True)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 19)]
    assert not file.functions
    kinds = [node.op_type for node in file.graph.node]
    assert {node.domain for node in file.graph.node} == {""}
    assert kinds.count("DeformConv") == 2 and "BatchNormalization" not in kinds
    assert_same(model, content, torch.randn(1, 3, 64, 96))

    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    (images,) = file.graph.input
    assert (images.name, shape(images)) == ("images", [1, 3, 64, 96])
    assert [output.name for output in file.graph.output] == list(OUTPUTS)
    assert [shape(output) for output in file.graph.output] == [[1, 20, 4], [1, 20, 8, 12], [1, 20]]
    artefact = read_onnx(content, CPU, "x")
    assert artefact.config == model.config
    assert artefact.class_names == ("a", "b", "c") and artefact.category_ids is None
    assert artefact.input_size == (64, 96)


def test_of_equal_ranks_the_lower_pixel_wins(monkeypatch):
    model = small_model(monkeypatch)
    torch.nn.init.zeros_(model.queries.classifier.weight)
    content = write(model, (2, 96, 96), opset=22)
    assert_same(model, content, torch.randn(2, 3, 96, 96))
    found = read_onnx(content, CPU, "x")(torch.randn(2, 3, 96, 96))
    np.testing.assert_array_equal(found["query_indices"], [range(20)] * 2)


def test_the_baseline(monkeypatch):
    model = small_model(monkeypatch, **MASK2FORMER)
    content = write(model, (1, 96, 128))
    assert_same(model, content, torch.randn(1, 3, 96, 128))


@pytest.mark.slow
@pytest.mark.parametrize("deformable", [False, True])
def test_a_dynamic_file_takes_other_sizes_and_batches(monkeypatch, deformable):
    model = small_model(monkeypatch, deformable)
    least = least_edge(model.config)
    content = write(model, (None, least, least))
    for shape in ((1, least, least), (1, 160, 96), (3, 128, 224)):
        assert_same(model, content, torch.randn(shape[0], 3, *shape[1:]))
    (images,) = onnx.load_from_string(content).graph.input
    names = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert names == ["batch", 3, "height", "width"]


def test_files_that_are_none():
    with pytest.raises(InputError, match="^x: onnxruntime cannot load it"):
        read_onnx(b"nothing", CPU, "x")
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "ab"]
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", values[:1], values[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 19)],
        ir_version=9,
    )
    with pytest.raises(InputError, match="^x: .*not by fastinst"):
        read_onnx(foreign.SerializeToString(), CPU, "x")
