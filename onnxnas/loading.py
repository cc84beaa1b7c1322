"""Reading a model file, and writing one so that a crash leaves no half of it behind."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxnas.errors import UsageError, VerificationError, unknown_name
from onnxnas.graph import check_model, contract, resolve_shape
from onnxnas.protos import (
    MAX_PROTO_BYTES,
    copy_without,
    tensor_bytes,
    undecodable,
    walk,
    weight_bytes,
)

MIN_OPSET = 9
_EXTERNAL = onnx.TensorProto.EXTERNAL
_EXTERNAL_FROM = 1024
"""Weights smaller than this many bytes stay in the model file when others go beside it."""

_DATA_FIELDS = (
    "raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
)  # fmt: skip

_LOOKS_LIKE = (
    # offset, bytes, what it is
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"RIFF", "a RIFF (WebP or WAV) file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a zip archive, as PyTorch and Keras save checkpoints"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x89HDF", "an HDF5 file, as Keras saves models"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "an onnxruntime .ort model"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x80\x02", "a Python pickle, as old PyTorch checkpoints are"),
    (0, b"\x80\x04", "a Python pickle"),
    (0, b"\x7fELF", "a program"),
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the real file with `git lfs pull`"),
    (0, b"<?xml", "an XML file"),
    (0, b"<!DOCTYPE", "a web page, perhaps a failed download"),
    (0, b"<html", "a web page, perhaps a failed download"),
    (0, b"{", "a JSON file"),
)


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file, opset 9 (IR 3) to the newest the installed onnx knows.

    External data is read into the model; nothing outside the model's folder is.

    Raises:
        UsageError: the file or its external data cannot be read, or it is not a valid ONNX model.
    """
    path = Path(path)
    model = _parse(path)
    _refuse_versions(model, path)
    if field := undecodable(model):
        raise UsageError(f"{path} is damaged: the text in {field} is not UTF-8.")
    for tensor in walk(model, onnx.TensorProto):
        if tensor.data_location == _EXTERNAL:
            _read_external(tensor, path)
        _refuse_damaged(tensor, path)
    try:
        # Not the strict check: runtimes accept many models whose declared shapes it refuses.
        check_model(model, full=False)
    except VerificationError as error:
        raise UsageError(f"{path} is not usable: {error}") from error
    return model


def parse_input_shapes(texts: Iterable[str], model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Input shapes from texts like ``name:1,3,224,224``; the name may be left out if there is one.

    Raises:
        UsageError: a text cannot be read, names no input, or contradicts the declared shape.
    """
    inputs = {port.name: port for port in contract(model)[0]}
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        if not colon and len(inputs) == 1:
            name = next(iter(inputs))
        elif not colon:
            raise UsageError(f"Cannot read --input-shape {text!r}: write name:1,3,224,224.")
        if name not in inputs:
            raise unknown_name("input", name, inputs)
        if name in shapes:
            raise UsageError(f"--input-shape gives input {name!r} twice.")
        try:
            shape = tuple(int(d) for d in dims.split(",")) if dims.strip() else ()
        except ValueError as error:
            raise UsageError(
                f"Cannot read --input-shape {text!r}: sizes are whole numbers, "
                f"e.g. {name}:1,3,224,224."
            ) from error
        if any(d < 1 for d in shape):
            raise UsageError(f"Cannot use --input-shape {text!r}: every size is at least 1.")
        shapes[name] = resolve_shape(inputs[name], {name: shape})
    return shapes


def external_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files beside a model that hold its weights; empty for one that is all in one file.

    Raises:
        UsageError: as `load_model`.
    """
    path = Path(path)
    tensors = walk(_parse(path), onnx.TensorProto)
    names = {_entries(t).get("location", "") for t in tensors if t.data_location == _EXTERNAL}
    return tuple(path.parent / name for name in sorted(names))


def check_output(
    path: str | os.PathLike[str], input_path: str | os.PathLike[str] | None = None
) -> None:
    """Refuse, before any work is done, an output path that cannot be written or must not be.

    Args:
        path: where a model is to be written.
        input_path: the model that is read; neither it nor its external data is ever overwritten,
            under whatever name.

    Raises:
        UsageError: the folder is missing or not writable, or something is in the way.
    """
    path = Path(path)
    if not path.name:
        raise UsageError(f"The output {str(path)!r} is not a file name.")
    if not path.parent.is_dir():
        raise UsageError(f"The output folder {path.parent} does not exist: create it first.")
    for target in (path, data_path(path)):
        if target.is_dir():
            raise UsageError(f"The output {target} is a folder: give a file name in it.")
        if target.exists() and not target.is_file():
            raise UsageError(f"The output {target} is not a regular file.")
    taken = [target for target in (path, data_path(path)) if target.exists()]
    if input_path is not None and taken:
        for source in (Path(input_path), *external_files(input_path)):
            if any(source.exists() and target.samefile(source) for target in taken):
                raise UsageError(
                    f"Writing {path} would overwrite the input {source}: give another name."
                )
    probe = _part(path)
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise UsageError(f"Cannot write to {path.parent}: {error.strerror}.") from error
    finally:
        probe.unlink(missing_ok=True)


def save_model(
    model: onnx.ModelProto, path: str | os.PathLike[str], *, external: bool = False
) -> tuple[Path, ...]:
    """Write a model to a temporary name in the same folder, then rename it.

    Args:
        model: is not changed.
        path: replaced if it exists; call `check_output` before the work that made the model.
        external: put the weights in ``NAME.onnx.data`` beside the model. Happens anyway where
            the model is too large for one file (2 GB).

    Returns:
        The files written, the model first.

    Raises:
        UsageError: the file cannot be written.
    """
    path = Path(path)
    apart = external or weight_bytes(model) > MAX_PROTO_BYTES
    files = (data_path(path), path) if apart else (path,)
    try:
        with _renamed_when_done(files) as parts:
            if apart:
                with parts[0].open("xb") as file:
                    model = _move_weights(model, file, files[0].name)
            parts[-1].write_bytes(model.SerializeToString())
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error
    except EncodeError as error:
        raise UsageError(f"Cannot write {path}: the model is too large for one file.") from error
    return files[::-1]


def data_path(path: Path) -> Path:
    """Where the external data of a model is written."""
    return path.with_name(path.name + ".data")


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the .onnx file in it.")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    if not data:
        raise UsageError(f"{path} is empty.")
    if len(data) >= 1 << 31:
        raise UsageError(f"{path} is over 2 GB: save its weights as external data.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        if model.HasField("graph"):
            return model
        problem = "it holds no graph"
    except DecodeError:
        problem = "it is cut short, damaged or something else"
    for offset, magic, what in _LOOKS_LIKE:
        if data[offset : offset + len(magic)] == magic:
            problem = f"it looks like {what}"
            break
    raise UsageError(f"{path} is not an ONNX model: {problem}.")


def _refuse_versions(model: onnx.ModelProto, path: Path) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise UsageError(
            f"{path} has IR version {model.ir_version}, newer than the {onnx.IR_VERSION} that "
            f"onnx {onnx.__version__} reads: upgrade onnx."
        )
    opsets = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if not opsets:
        raise UsageError(f"{path} does not say which ONNX opset it uses: export it again.")
    newest = onnx.defs.onnx_opset_version()
    if max(opsets) > newest:
        raise UsageError(
            f"{path} has opset {max(opsets)}, newer than the {newest} that "
            f"onnx {onnx.__version__} knows: upgrade onnx."
        )
    if min(opsets) < MIN_OPSET:
        raise UsageError(
            f"{path} has opset {min(opsets)}, older than {MIN_OPSET}: "
            "convert it with onnx.version_converter."
        )


def _refuse_damaged(tensor: onnx.TensorProto, path: Path) -> None:
    """The checker looks at this only in part, and everything that reads weights relies on it."""
    where = f"{path} is damaged: tensor {tensor.name!r}"
    if tensor.data_type not in onnx.TensorProto.DataType.values()[1:]:
        raise UsageError(f"{where} is of an unknown type ({tensor.data_type}).")
    wanted = tensor_bytes(tensor)
    size = len(tensor.raw_data) if tensor.HasField("raw_data") else None
    if any(d < 0 for d in tensor.dims) or (None not in (size, wanted) and size != wanted):
        dims = ",".join(map(str, tensor.dims))
        raise UsageError(f"{where} of shape [{dims}] has {size} bytes of data.")


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _read_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Replace a tensor's reference to external data by the data."""
    entries = _entries(tensor)
    location = entries.get("location", "")
    where = f"{path}: the external data {location!r} of tensor {tensor.name!r}"
    wanted = tensor_bytes(tensor)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", wanted or 0))
    except ValueError as error:
        raise UsageError(f"{where} has an offset or length that is not a number.") from error
    if wanted is None or length != wanted or offset < 0:
        raise UsageError(f"{where} has a length or offset that does not fit the tensor.")
    file = path.parent / location
    # Two homes: a model that is itself a link (a download cache) has its data where it points.
    homes = (path.parent.resolve(), path.resolve().parent)
    if (
        not location
        or "\0" in location
        or Path(location).is_absolute()
        or ".." in Path(location).parts
        or not any(file.resolve().is_relative_to(home) for home in homes)
    ):
        raise UsageError(f"{where} is outside the model's folder, which is never read.")
    if not file.is_file():
        raise UsageError(f"{where} is missing: keep it beside the model.")
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}.") from error
    if len(data) < length:
        raise UsageError(
            f"{where} is too short: {offset + length} bytes are needed, it has "
            f"{file.stat().st_size}."
        )
    tensor.raw_data = data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _move_weights(model: onnx.ModelProto, file: IO[bytes], location: str) -> onnx.ModelProto:
    """Write large initializers to a file; returns the model that refers to them there."""
    light = copy_without(model, "graph")
    light.graph.CopyFrom(copy_without(model.graph, "initializer"))
    for tensor in model.graph.initializer:
        size = tensor_bytes(tensor)
        if size is None or size < _EXTERNAL_FROM:
            light.graph.initializer.add().CopyFrom(tensor)
            continue
        if tensor.HasField("raw_data"):
            data = tensor.raw_data
        else:  # typed fields: packed as raw_data would be
            data = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
        file.write(b"\0" * (-file.tell() % 64))
        stub = light.graph.initializer.add()
        stub.CopyFrom(copy_without(tensor, *_DATA_FIELDS))
        stub.data_location = _EXTERNAL
        for key, value in (("location", location), ("offset", file.tell()), ("length", len(data))):
            stub.external_data.add(key=key, value=str(value))
        file.write(data)
    return light


@contextmanager
def _renamed_when_done(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary names for files; they get their names, in order, only if all went well."""
    parts = [_part(path) for path in files]
    try:
        yield parts
        for part, path in zip(parts, files, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
