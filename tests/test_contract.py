"""What a caller of a model relies on: its inputs and outputs, their shapes, its validity."""

from __future__ import annotations

from typing import Any

import models
import onnx
import pytest

from onnxnas import graph as graphs
from onnxnas.errors import UsageError, VerificationError
from onnxnas.graph import check_model, contract, resolve_shape


@pytest.mark.parametrize(
    ("declared", "given", "expected"),
    [
        ([1, 3], None, (1, 3)),
        (["N", 3], None, (1, 3)),
        ([None, 3], (7, 3), (7, 3)),
        ([-1, 3], None, (1, 3)),
        ([], None, ()),
        (None, (2, 2), (2, 2)),
        ([1, "H"], None, "dynamic"),
        (None, None, "no declared shape"),
        ([1, 3], (1, 4), "does not fit"),
        ([1, 3], (1, 3, 1), "does not fit"),
    ],
)
def test_the_static_shape_of_an_input(declared: Any, given: Any, expected: Any) -> None:
    port = graphs.Port("x", "float", declared)
    shapes = {} if given is None else {"x": given}
    if isinstance(expected, tuple):
        assert resolve_shape(port, shapes) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            resolve_shape(port, shapes)


def test_the_contract_in_words() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, ?] x, float[2] w, seq(optional(int64[2])) s) => (float16 y)
        <float[2] w = {1.0, 2.0}> { y = Cast <to = 10> (x) }""",
    )
    inputs, outputs = contract(model)
    assert [str(p) for p in inputs] == ["x: float[N,3,?]", "s: sequence(optional(int64))[?]"]
    assert outputs[0].shape == ()
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert contract(model)[1][0].shape is None


def test_a_model_too_large_to_be_serialised_is_checked_without_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    b = models.ModelBuilder([1, 8, 4, 4])
    model = b.build(b.op("Relu", b.conv(b.x, 8, 4096)))
    monkeypatch.setattr(graphs, "MAX_PROTO_BYTES", 1000)
    check_model(model)
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(VerificationError, match="nowhere"):
        check_model(model)
