"""Every way a model file can be wrong gives one sentence; what is written is whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnas import loading
from onnxnas.errors import OnnxnasError, UsageError
from onnxnas.graph import from_model, to_model
from onnxnas.loading import (
    check_output,
    external_files,
    load_model,
    parse_input_shapes,
    save_model,
)


def small(opset: int = 13) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 8, 8], opset=opset)
    return b.build(b.op("Relu", b.conv(b.x, 3, 24, 3, pads=1)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    """The one sentence a file is refused with."""
    with pytest.raises(UsageError) as info:
        load_model(path)
    message = str(info.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, onnx.defs.onnx_opset_version()])
def test_models_of_every_opset_are_read_as_they_are(tmp_path: Path, opset: int) -> None:
    model = small(13)
    model.opset_import[0].version = opset
    model.ir_version = 3 if opset == 9 else 8
    if opset == 9:  # until IR 4 weights are inputs too
        for t in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    assert load_model(write(tmp_path / "m.onnx", model.SerializeToString())) == model


def test_a_model_without_nodes_whose_output_is_an_input(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    model = helper.make_model(helper.make_graph([], "g", [value], [value]), ir_version=8)
    assert load_model(write(tmp_path / "m.onnx", model.SerializeToString())) == model


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "absent.onnx")
    assert "is a folder" in refusal(tmp_path)
    assert "is empty" in refusal(write(tmp_path / "m.onnx", b""))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)), "a JPEG picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "a PNG picture"),
        (b"PK\x03\x04" + b"\0" * 64, "PyTorch"),
        (b"\x1c\x00\x00\x00TFL3" + b"\0" * 64, "TensorFlow Lite"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "NumPy"),
    ],
)
def test_another_kind_of_file_is_recognised(tmp_path: Path, data: bytes, what: str) -> None:
    assert what in refusal(write(tmp_path / "m.onnx", data))


def test_protobuf_that_is_no_model(tmp_path: Path) -> None:
    assert "no graph" in refusal(write(tmp_path / "m.onnx", b"\x08\x08"))
    assert "is not an ONNX model" in refusal(write(tmp_path / "m.onnx", b"\x0b\x0c\x0d garbage"))


def test_versions_that_are_too_new_too_old_or_absent(tmp_path: Path) -> None:
    path, model = tmp_path / "m.onnx", small()
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    assert "upgrade onnx" in refusal(write(path, model.SerializeToString()))
    model.opset_import[0].version = 8
    assert "version_converter" in refusal(write(path, model.SerializeToString()))
    model.opset_import[0].domain = "com.example"
    assert "which ONNX opset" in refusal(write(path, model.SerializeToString()))
    model = small()
    model.ir_version = onnx.IR_VERSION + 1
    assert "upgrade onnx" in refusal(write(path, model.SerializeToString()))


def test_a_model_the_checker_refuses(tmp_path: Path) -> None:
    model = small()
    model.graph.node[0].op_type = "Convolve"
    message = refusal(write(tmp_path / "m.onnx", model.SerializeToString()))
    assert "not valid ONNX" in message
    assert "Convolve" in message


def test_weights_whose_size_is_wrong(tmp_path: Path) -> None:
    model = small()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    assert "damaged" in refusal(write(tmp_path / "m.onnx", model.SerializeToString()))


def test_text_that_is_no_text(tmp_path: Path) -> None:
    model = small()
    model.graph.node[0].name = "conv_name"
    data = model.SerializeToString().replace(b"conv_name", b"conv\xce\xe7ame")
    assert "graph.node.name is not UTF-8" in refusal(write(tmp_path / "m.onnx", data))


@pytest.fixture
def outside(tmp_path: Path) -> tuple[Path, onnx.ModelProto]:
    """A model with external data, as a file and as it should be read."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = small()
    save_model(model, folder / "m.onnx", external=True)
    return folder / "m.onnx", model


def relocate(path: Path, **entries: str) -> None:
    """Change the external data entries of the first external weight of a model file."""
    model = onnx.ModelProto.FromString(path.read_bytes())
    tensor = next(t for t in model.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_external_data_is_read_and_named(outside: tuple[Path, onnx.ModelProto]) -> None:
    path, model = outside
    assert load_model(path) == model
    assert external_files(path) == (path.with_name("m.onnx.data"),)
    onnx.checker.check_model(str(path))


def test_external_data_that_is_missing_or_short(outside: tuple[Path, onnx.ModelProto]) -> None:
    path, _ = outside
    data = path.with_name("m.onnx.data")
    data.write_bytes(data.read_bytes()[:-8])
    assert "too short" in refusal(path)
    data.unlink()
    assert "is missing" in refusal(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "", "."])
def test_external_data_outside_the_folder_is_refused(
    outside: tuple[Path, onnx.ModelProto], location: str
) -> None:
    path, _ = outside
    (path.parents[1] / "secret").write_bytes(b"\0" * 10_000)
    relocate(path, location=location)
    message = refusal(path)
    assert "outside the model's folder" in message or "is missing" in message


def test_external_data_through_a_link_out_of_the_folder(
    outside: tuple[Path, onnx.ModelProto],
) -> None:
    path, _ = outside
    data = path.with_name("m.onnx.data")
    data.rename(path.parents[1] / "elsewhere")
    data.symlink_to(path.parents[1] / "elsewhere")
    assert "outside the model's folder" in refusal(path)


def test_a_download_cache_of_links_is_read(outside: tuple[Path, onnx.ModelProto]) -> None:
    path, model = outside
    links = path.parents[1] / "snapshot"
    links.mkdir()
    for file in path.parent.iterdir():
        (links / file.name).symlink_to(file)
    assert load_model(links / "m.onnx") == model


@pytest.mark.parametrize(
    "entries", [{"offset": "-4"}, {"length": "12"}, {"offset": "x"}, {"length": "9" * 30}]
)
def test_external_data_with_nonsense_in_it(
    outside: tuple[Path, onnx.ModelProto], entries: dict[str, str]
) -> None:
    relocate(outside[0], **entries)
    assert "external data" in refusal(outside[0])


def test_saving_leaves_no_other_file_and_keeps_the_model(tmp_path: Path) -> None:
    model = small()
    before = model.SerializeToString()
    assert save_model(model, tmp_path / "out.onnx") == (tmp_path / "out.onnx",)
    assert os.listdir(tmp_path) == ["out.onnx"]
    assert load_model(tmp_path / "out.onnx") == model
    assert save_model(model, tmp_path / "out.onnx", external=True)[1].name == "out.onnx.data"
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]
    assert model.SerializeToString() == before


def test_weights_in_typed_fields_and_small_types_go_beside_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(2000).astype(np.float32)
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [2000], values.tolist())
    nibbles = helper.make_tensor("nibbles", TensorProto.INT4, [5001], [i % 7 for i in range(5001)])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2000])
    z = helper.make_tensor_value_info("nibbles", TensorProto.INT4, [5001])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["typed"], ["y"])], "g", [], [y, z], [typed, nibbles]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size >= 8000 + 2501
    read = load_model(tmp_path / "m.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(read[0]), values)
    assert numpy_helper.to_array(read[1]).tolist() == [i % 7 for i in range(5001)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("external", [False, True])
def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], external: bool
) -> None:
    path = write(tmp_path / "m.onnx", b"old")

    def interrupted(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(UsageError if error is OSError else error):
        save_model(small(), path, external=external)
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert path.read_bytes() == b"old"


def test_a_model_too_large_for_one_file_goes_into_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MAX_PROTO_BYTES", 1000)
    assert len(save_model(small(), tmp_path / "m.onnx")) == 2
    assert load_model(tmp_path / "m.onnx") == small()


def test_output_paths_that_cannot_be_written(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UsageError) as info:
            check_output(path)
        return str(info.value)

    assert "does not exist" in refused(tmp_path / "absent" / "o.onnx")
    assert "is a folder" in refused(tmp_path)
    assert "not a regular file" in refused(Path("/dev/null"))
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a regular file" in refused(tmp_path / "pipe.onnx")
    assert "Cannot write" in refused(Path("/proc/o.onnx"))
    check_output(tmp_path / "fine.onnx")
    assert os.listdir(tmp_path) == ["pipe.onnx"]


def test_the_input_is_never_overwritten(outside: tuple[Path, onnx.ModelProto]) -> None:
    path, _ = outside
    folder = path.parent
    (folder / "soft.onnx").symlink_to(path)
    (folder / "hard.onnx").hardlink_to(path)
    (folder / "other.onnx.data").hardlink_to(folder / "m.onnx.data")
    for name in ("m.onnx", "soft.onnx", "hard.onnx", "other.onnx", "m.onnx.data"):
        with pytest.raises(UsageError, match="overwrite the input"):
            check_output(folder / name, path)
    check_output(folder / "new.onnx", path)
    write(folder / "old.onnx", b"x")
    check_output(folder / "old.onnx", path)


def test_input_shapes_are_read() -> None:
    b = models.ModelBuilder(["N", 3, "H", 8], x="in:0")
    model = b.build(b.op("Relu", b.x))
    assert parse_input_shapes(["in:0:2,3,16,8"], model) == {"in:0": (2, 3, 16, 8)}
    assert parse_input_shapes(["1,3,4,8"], model) == {"in:0": (1, 3, 4, 8)}
    assert parse_input_shapes([], model) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["inn:0:1,3,4,8"], "did you mean 'in:0'"),
        (["in:0:1,3,4,x"], "whole numbers"),
        (["in:0:1,3,4,"], "whole numbers"),
        (["in:0:1,3,0,8"], "at least 1"),
        (["in:0:1,3,4"], "does not fit"),
        (["in:0:1,3,4,9"], "does not fit"),
        (["in:0:1,3,4,8", "in:0:1,3,4,8"], "twice"),
    ],
)
def test_input_shapes_that_cannot_be_used(texts: list[str], message: str) -> None:
    b = models.ModelBuilder(["N", 3, "H", 8], x="in:0")
    model = b.build(b.op("Relu", b.x))
    with pytest.raises(UsageError, match=message):
        parse_input_shapes(texts, model)


def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    data, path = small().SerializeToString(), tmp_path / "m.onnx"
    rng = np.random.default_rng(0)
    outcomes = {"refused": 0, "read": 0}
    for trial in range(300):
        if trial % 3:
            damaged = bytearray(data)
            structure = len(data) - 200 if trial % 2 else 0  # past the weights, mostly
            damaged[int(rng.integers(structure, len(data)))] ^= 1 << int(rng.integers(8))
        else:
            damaged = bytearray(data[: int(rng.integers(1, len(data)))])
        try:
            model = load_model(write(path, bytes(damaged)))
            to_model(from_model(model), model)
            outcomes["read"] += 1
        except OnnxnasError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes
