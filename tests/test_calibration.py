"""The user's inputs arrive row by row as they are, and bad data is refused in one sentence."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxnas import calibration
from onnxnas.calibration import Calibration, load_calibration
from onnxnas.errors import UsageError
from onnxnas.graph import Port
from onnxnas.verify import verify

IMAGE = [Port("x", "float", (1, 3, 4, 6))]
RNG = np.random.default_rng(0)


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def npy(path: Path, array: NDArray[Any]) -> Path:
    np.save(path, array)
    return path


def refused(path: Path, inputs: list[Port] = IMAGE, **options: Any) -> str:
    with pytest.raises(UsageError) as info:
        load_calibration(path, inputs, **options)
    message = str(info.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("batch", [1, "N", None])
def test_an_array_gives_its_rows_as_batches_of_one(tmp_path: Path, batch: Any) -> None:
    array = floats(5, 3, 4, 6)
    inputs = [Port("x", "float", (batch, 3, 4, 6))]
    data = load_calibration(npy(tmp_path / "a.npy", array), inputs)
    assert len(data) == 5
    rows = [feeds["x"] for feeds in data.batches()]
    assert [r.shape for r in rows] == [(1, 3, 4, 6)] * 5
    np.testing.assert_array_equal(np.concatenate(rows), array)


def test_batches_of_any_size_where_the_batch_is_open(tmp_path: Path) -> None:
    array = floats(5, 3, 4, 6)
    data = load_calibration(npy(tmp_path / "a.npy", array), [Port("x", "float", ("N", 3, 4, 6))])
    batches = [feeds["x"] for feeds in data.batches(2)]
    assert [len(b) for b in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), array)


def test_a_fixed_batch_is_filled_or_left_out(tmp_path: Path) -> None:
    inputs = [Port("x", "float", (2, 3, 4, 6))]
    data = load_calibration(npy(tmp_path / "a.npy", floats(5, 3, 4, 6)), inputs)
    assert [len(feeds["x"]) for feeds in data.batches()] == [2, 2]
    assert "fewer than the model's batch" in refused(
        npy(tmp_path / "b.npy", floats(1, 3, 4, 6)), inputs
    )


def test_arrays_of_several_inputs_some_without_a_batch(tmp_path: Path) -> None:
    inputs = [Port("x", "float", ("N", 3)), Port("i", "int64", (4,))]
    x, i = floats(6, 3), RNG.integers(0, 9, (6, 4))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=x, i=i, labels=np.arange(6))
        data = load_calibration(tmp_path / "a.npz", inputs)
        assert "labels" in data.notes[0]
        for row, feeds in enumerate(data.batches()):
            np.testing.assert_array_equal(feeds["x"], x[row : row + 1])
            np.testing.assert_array_equal(feeds["i"], i[row])


def test_rows_are_limited_and_chosen_evenly(tmp_path: Path) -> None:
    array = np.repeat(np.arange(100, dtype=np.float32)[:, None], 3, axis=1)
    path, inputs = npy(tmp_path / "a.npy", array), [Port("x", "float", (1, 3))]
    data = load_calibration(path, inputs, limit=5)
    assert [float(f["x"][0, 0]) for f in data.batches()] == [0, 25, 50, 74, 99]
    half = load_calibration(path, inputs).subset(range(1, 100, 2))
    assert len(half) == 50
    assert float(next(half.batches())["x"][0, 0]) == 1
    assert "at least 1" in refused(path, inputs, limit=0)


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_KEPT_BYTES", 1 << 20)
    array = np.zeros((400, 3, 64, 64), np.float32)  # 20 MB
    inputs = [Port("x", "float", (1, 3, 64, 64))]
    if compressed:
        np.savez_compressed(tmp_path / "a.npz", x=array)
    path = tmp_path / "a.npz" if compressed else npy(tmp_path / "a.npy", array)
    tracemalloc.start()
    try:
        assert sum(1 for _ in load_calibration(path, inputs).batches()) == 400
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_rows_that_were_read_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as fit; two readers at once, and some rows twice, get each what they ask for."""
    array = floats(6, 3, 4, 6)
    monkeypatch.setattr(calibration, "_KEPT_BYTES", 4 * array[0].nbytes)
    path = npy(tmp_path / "a.npy", array)
    data = load_calibration(path, IMAGE, limit=5)
    both = list(zip(data.batches(), data.subset([1, 4]).batches(), strict=False))
    np.testing.assert_array_equal([a["x"][0] for a, _ in both], array[list(data.rows[:2])])
    np.testing.assert_array_equal(both[1][1]["x"][0], array[data.rows[4]])
    np.save(path, 2 * array)
    read = np.concatenate([b["x"] for b in data.batches()])
    np.testing.assert_array_equal(read[:4], array[list(data.rows[:4])])
    np.testing.assert_array_equal(read[4:], 2 * array[list(data.rows[4:])])


def test_other_byte_orders_are_turned_round(tmp_path: Path) -> None:
    array = floats(2, 3)
    path = npy(tmp_path / "a.npy", array.astype(">f4"))
    feeds = next(load_calibration(path, [Port("x", "float", (1, 3))]).batches())
    assert feeds["x"].dtype == np.dtype("=f4")
    np.testing.assert_array_equal(feeds["x"], array[:1])


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    good = floats(2, 3, 4, 6)
    assert "[rows,3,4,6]" in refused(npy(path, floats(2, 4, 6, 3)))
    assert "[rows,3,4,6]" in refused(npy(path, floats(4, 6)))
    assert ".astype('float32')" in refused(npy(path, good.astype(np.float64)))
    assert "no rows" in refused(npy(path, good[:0]))
    assert "no rows" in refused(npy(path, np.array(1.0, np.float32)))
    assert "Fortran" in refused(npy(path, np.asfortranarray(good)))
    assert "as they are" in refused(npy(path, good), mean="1,2,3")
    assert "has 2 inputs" in refused(npy(path, good), [*IMAGE, Port("z", "float", (1,))])
    assert "no inputs" in refused(npy(path, good), [])
    assert "sequence(float)" in refused(npy(path, good), [Port("x", "sequence(float)", None)])
    shapes = {"x": (1, 3, 4, 7)}
    open_width = [Port("x", "float", (1, 3, 4, "W"))]
    assert "[rows,3,4,7]" in refused(npy(path, good), open_width, input_shapes=shapes)
    assert len(load_calibration(path, open_width)) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    array = floats(3, 3, 4, 6)
    array[1, 0, 0, 0] = value
    assert "NaN or infinite values in row 1" in refused(npy(tmp_path / "a.npy", array))


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    assert "no calibration data" in refused(path)
    path.write_bytes(b"hello")
    assert "give .npy, .npz or a folder" in refused(path)
    path.write_bytes(b"\x93NUMPY\x01\x00")
    assert "not a NumPy array" in refused(path)
    objects = np.empty(2, object)
    np.save(path, objects, allow_pickle=True)
    assert "Python objects" in refused(path)
    whole = npy(path, floats(3, 3, 4, 6)).read_bytes()
    path.write_bytes(whole[:-1])
    assert "cut short" in refused(path)
    path.write_bytes(b"PK\x03\x04 not a zip")
    assert "not an .npz" in refused(path)


def test_npz_files_that_do_not_fit(tmp_path: Path) -> None:
    path, inputs = tmp_path / "a.npz", [Port("x", "float", (1, 3)), Port("z", "float", (1, 2))]
    np.savez(path, x=floats(4, 3), y=floats(4, 2))
    assert "no array for input 'z'; it has x, y" in refused(path, inputs)
    np.savez(path, x=floats(4, 3), z=floats(5, 2))
    assert "different numbers of rows" in refused(path, inputs)
    np.savez_compressed(path, x=floats(4, 3), z=floats(4, 2))
    data = bytearray(path.read_bytes())
    data[80:100] = b"\xff" * 20
    path.write_bytes(bytes(data))
    assert "cannot be read" in refused(path, inputs) or "not a NumPy" in refused(path, inputs)


def pixels(*, height: int = 4, width: int = 6) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)


def folder(tmp_path: Path, *pictures: NDArray[np.uint8]) -> Path:
    target = tmp_path / "pictures"
    for number, picture in enumerate(pictures):
        where = target / f"class{number}"
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(where / f"{number}.png")
    return target


def first(data: Calibration) -> NDArray[Any]:
    return next(data.batches())["x"]


def test_pictures_become_rows(tmp_path: Path) -> None:
    a, b = pixels(), pixels()
    path = folder(tmp_path, a, b)
    (path / "labels.txt").write_text("cat")
    (path / ".hidden").write_text("")
    data = load_calibration(path, IMAGE)
    assert len(data) == 2
    assert data.notes == ("1 files are no pictures, e.g. labels.txt",)
    rows = [feeds["x"] for feeds in data.batches()]
    assert rows[0].dtype == np.float32
    np.testing.assert_array_equal(rows[0][0], a.transpose(2, 0, 1))
    np.testing.assert_array_equal(rows[1][0], b.transpose(2, 0, 1))


def test_preprocessing_is_what_it_says(tmp_path: Path) -> None:
    a = pixels()
    path = folder(tmp_path, a)
    options: dict[str, Any] = {"mean": "10,20,30", "scale": "2,4,8", "channel_order": "bgr"}
    row = first(load_calibration(path, IMAGE, **options))
    expected = (a[:, :, ::-1].astype(np.float64) - [10, 20, 30]) / [2, 4, 8]
    np.testing.assert_allclose(row[0], expected.transpose(2, 0, 1), rtol=1e-6)
    row = first(load_calibration(path, [Port("x", "uint8", ("N", 4, 6, 3))], layout="nhwc"))
    np.testing.assert_array_equal(row[0], a)
    row = first(load_calibration(path, [Port("x", "int8", (1, 3, 4, 6))], mean="128"))
    np.testing.assert_array_equal(row[0], a.transpose(2, 0, 1).astype(int) - 128)


def test_pictures_are_scaled_and_made_grey(tmp_path: Path) -> None:
    flat = np.full((40, 30, 3), 77, np.uint8)
    path = folder(tmp_path, flat)
    row = first(load_calibration(path, [Port("x", "float", (1, 1, 8, 8))]))
    assert row.shape == (1, 1, 8, 8)
    np.testing.assert_array_equal(row, 77)
    open_size = [Port("x", "float", ("N", 3, "H", "W"))]
    assert "--input-shape x:" in refused(path, open_size)
    row = first(load_calibration(path, open_size, input_shapes={"x": (1, 3, 5, 7)}))
    assert row.shape == (1, 3, 5, 7)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path, pixels(), pixels())
    broken = path / "class1" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert "1.png cannot be read" in refused(path)
    broken.write_bytes(b"no picture")
    assert "1.png cannot be read" in refused(path)
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(broken)
    assert "8 bits" in refused(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "1,2"}, "one number, or three"),
        ({"mean": "x"}, "one number, or three"),
        ({"scale": "nan"}, "one number, or three"),
        ({"scale": "1,0,1"}, "divides by zero"),
        ({"layout": "chw"}, "nchw or nhwc"),
        ({"channel_order": "gbr"}, "rgb or bgr"),
        ({"layout": "nhwc"}, "check --layout"),
    ],
)
def test_preprocessing_that_cannot_be(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    assert message in refused(folder(tmp_path, pixels()), **options)


def test_folders_and_inputs_that_do_not_fit(tmp_path: Path) -> None:
    path = folder(tmp_path, pixels())
    assert "give an .npz" in refused(path, [*IMAGE, Port("z", "float", (1,))])
    assert "is no picture" in refused(path, [Port("x", "float", (1, 3))])
    assert "one channel" in refused(path, [Port("x", "float", (1, 1, 4, 4))], mean="1,2,3")
    assert "do not fit" in refused(path, [Port("x", "int8", (1, 3, 4, 6))])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no pictures" in refused(empty)


def asleep(seed: int) -> onnx.ModelProto:
    """Gives nothing but zeros, unless its inputs are large."""
    b = models.ModelBuilder([1, 3, 4, 6], seed=seed)
    hidden = b.op("Sub", b.conv(b.x, 3, 4), b.const(np.array(1e4, np.float32)))
    return b.build(b.op("Mul", b.op("Relu", hidden), b.const(np.array(2, np.float32)), out="y"))


def test_verification_uses_the_rows(tmp_path: Path) -> None:
    data = load_calibration(npy(tmp_path / "a.npy", 1e6 * floats(9, 3, 4, 6)), IMAGE)
    blind = verify(asleep(0), asleep(1))
    assert blind.ok
    assert "give --calibration" in blind.notes[0]
    result = verify(asleep(0), asleep(1), calibration=data, max_rows=4)
    assert not result.ok
    assert result.calibration_rows == 4
    assert verify(asleep(0), asleep(0), calibration=data).calibration_rows == 9
