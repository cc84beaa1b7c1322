"""Evaluation: what is measured, and the one sentence that bad data gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxnas.errors import UsageError
from onnxnas.evaluate import (
    checked,
    evaluate,
    find_function,
    predict,
    read_arrays,
    refuse_shared_rows,
)

Arrays = dict[str, NDArray[Any]]


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> main {text}')


def classifier(batch: str = "N") -> onnx.ModelProto:
    return model(f"(float[{batch},3] x) => (float[{batch},3] y) {{ y = Identity(x) }}")


def rows(count: int = 10) -> Arrays:
    """Rows that `classifier` gets right, but for the last."""
    labels = np.arange(count) % 3
    inputs = np.eye(3, dtype=np.float32)[labels]
    labels[-1] = (labels[-1] + 1) % 3
    return {"inputs": inputs, "labels": labels}


def module(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("batch", ["N", "1", "4"])
def test_top1_with_any_batch_size(batch: str) -> None:
    (measured,) = evaluate(classifier(batch), "top1", rows())
    assert (measured.name, measured.value, measured.rows) == ("top1", 0.9, 10)
    assert measured.interval is not None
    assert measured.interval[0] < 0.9 < measured.interval[1] <= 1.0


@pytest.mark.parametrize("batch", ["N", "4"])
def test_predictions_are_in_the_order_of_the_rows(batch: str) -> None:
    inputs = {"x": np.random.default_rng(0).random((70, 3), np.float32)}
    np.testing.assert_array_equal(predict(classifier(batch), inputs)["y"], inputs["x"])


def test_map_reads_its_two_outputs_by_name_or_shape() -> None:
    boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (3, 2, 1))
    boxes[:, 1] += np.float32(0.4)
    scores = np.tile(np.array([[0.8], [0.9]], np.float32), (3, 1, 1))
    data: Arrays = {
        "b": boxes, "s": scores,
        "boxes": boxes[:, :1], "labels": np.zeros((3, 1), np.int64),
    }  # fmt: skip
    for first, second in (("scores", "boxes"), ("left", "right")):
        detector = model(
            f"(float[N,2,4] b, float[N,2,1] s) => (float[N,2,1] {first}, float[N,2,4] {second}) "
            f"{{ {first} = Identity(s) {second} = Identity(b) }}"
        )
        at_half, over_range = evaluate(detector, "map", data)
        assert (at_half.name, over_range.name) == ("map50", "map")
        assert at_half.value == over_range.value == pytest.approx(0.5)


def test_miou_of_a_class_map() -> None:
    segmenter = model(
        "(float[N,2,4,4] x) => (int64[N,4,4] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"
    )
    x = np.zeros((5, 2, 4, 4), np.float32)
    x[:, 1, 2:] = 1
    labels = x.argmax(1)
    labels[:, 0] = -1
    assert evaluate(segmenter, "miou", {"x": x, "labels": labels})[0].value == 1.0


def test_the_users_own_function_gets_a_session(tmp_path: Path) -> None:
    text = "def metric(session):\n    return len(session.get_inputs()) / 4\n"
    (measured,) = evaluate(classifier(), f"{module(tmp_path, text)}:metric")
    assert (measured.value, measured.interval, measured.rows) == (0.25, None, None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'good'", "returned str, not a number"),
        ("return None", "returned NoneType, not a number"),
        ("return True", "returned bool, not a number"),
        ("return float('nan')", "not one finite number"),
        ("import numpy; return numpy.ones(3)", "not one finite number"),
        ("import numpy; return numpy.array(['a'])", "returned ndarray, not a number"),
        ("return 1 / 0", "failed: ZeroDivisionError"),
    ],
)
def test_a_function_that_returns_no_number_is_refused(tmp_path: Path, body: str, said: str) -> None:
    entry = f"{module(tmp_path, f'def metric(session): {body}')}:metric"
    with pytest.raises(UsageError, match=said) as error:
        evaluate(classifier(), entry)
    assert "mine.py:metric" in str(error.value)


def test_data_from_a_file_or_a_function(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **rows())  # type: ignore[arg-type]
    from_file = read_arrays(str(tmp_path / "rows.npz"))
    (tmp_path / "helper_of_mine.py").write_text("COUNT = 3\n", encoding="utf-8")
    text = (
        "import numpy as np\nfrom helper_of_mine import COUNT\n"
        "def data(): return {'inputs': np.ones((COUNT, 3), np.float32), 'labels': np.zeros(3)}\n"
    )
    from_function = read_arrays(f"{module(tmp_path, text)}:data")
    assert from_file.keys() == from_function.keys() == {"inputs", "labels"}
    assert from_function["inputs"].shape == (3, 3)
    assert find_function("math:sqrt")(4) == 2


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.npz", "nowhere.npz cannot be read"),
        ("nowhere.csv", "name an .npz file or module:function"),
        ("nowhere.py:data", "nowhere.py cannot be imported"),
        ("no_such_module:data", "no_such_module cannot be imported"),
        ("math:no_such_function", "math has no function 'no_such_function'"),
        ("math:pi", "math has no function 'pi'"),
        ("os:getcwd", "returned str: return a dict of numpy arrays"),
        ("math:sqrt", "math:sqrt failed: TypeError"),
    ],
)
def test_a_source_that_gives_no_arrays_is_refused(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_arrays(source)


def test_a_file_that_only_looks_like_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"hello")
    np.save(tmp_path / "plain.npy", np.ones(3))
    (tmp_path / "plain.npy").rename(tmp_path / "b.npz")
    for name in ("a.npz", "b.npz"):
        with pytest.raises(UsageError, match=name):
            read_arrays(str(tmp_path / name))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": np.ones((10, 4), np.float32)}, r"shape \(10, 4\) and the model takes x"),
        ({"inputs": np.ones((10, 3, 1), np.float32)}, "the first dimension counts rows"),
        ({"inputs": np.ones((10, 3))}, "is float64 and the model's input 'x' is float32"),
        ({"inputs": np.ones((10, 3), np.uint8)}, "is uint8"),
        ({"inputs": np.ones((0, 3), np.float32)}, "is empty"),
        ({"inputs": np.full((10, 3), np.nan, np.float32)}, "NaN or infinity in row 0"),
        ({"inputs": np.ones((9, 3), np.float32)}, "different numbers of rows: x 9, labels 10"),
        ({"labels": np.full(10, 3)}, "Label 3 in row 0 is out of range"),
        ({"labels": np.full(10, -2)}, "Label -2 in row 0 is out of range"),
        ({"labels": np.ones(10)}, "labels are float64"),
        ({"labels": np.full(10, np.inf)}, "'labels' holds NaN or infinity"),
        ({"labels": np.ones((10, 2), int)}, "labels of a classifier"),
        ({"labels": None}, "has no array 'labels': it has inputs"),
        ({"inputs": None}, "has no array 'inputs': it has labels"),
    ],
)
def test_bad_data_is_refused_with_one_sentence(change: dict[str, Any], said: str) -> None:
    data = {name: value for name, value in (rows() | change).items() if value is not None}
    with pytest.raises(UsageError, match=said) as error:
        evaluate(classifier(), "top1", data)
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message


def test_a_metric_needs_a_known_name_and_data() -> None:
    with pytest.raises(UsageError, match="did you mean 'top1'"):
        evaluate(classifier(), "top", rows())
    with pytest.raises(UsageError, match="miou needs data"):
        evaluate(classifier(), "miou")


def test_outputs_that_do_not_fit_the_metric_are_named() -> None:
    two = model("(float[N,3] x) => (float[N,3] a, float[N,3] b) { a = Identity(x) b = Relu(x) }")
    with pytest.raises(UsageError, match=r"the model has a \(10, 3\), b \(10, 3\)"):
        evaluate(two, "top1", rows())
    with pytest.raises(UsageError, match="outputs named 'boxes'"):
        evaluate(two, "map", rows() | {"boxes": np.ones((10, 2, 4))})
    total = model("(float[N,3] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }")
    with pytest.raises(UsageError, match="no row per input row"):
        evaluate(total, "top1", rows())


def test_calibration_rows_may_not_be_test_rows() -> None:
    image = np.random.default_rng(0).random((20, 3), np.float32)
    refuse_shared_rows({"x": image[:10]}, {"x": image[10:]})
    with pytest.raises(UsageError, match="2 test rows are also calibration rows, the first is row"):
        refuse_shared_rows({"x": image[:10]}, {"x": image[8:]})


def test_checked_data_knows_inputs_from_truth() -> None:
    data = checked(classifier(), "top1", rows())
    assert (list(data.inputs), list(data.truth), data.rows) == (["x"], ["labels"], 10)
