"""The user's own inputs, row by row: arrays or a folder of pictures, few of them in memory."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import UsageError
from onnxnas.graph import Port, is_static
from onnxnas.pictures import PICTURE_SUFFIXES, Preprocessing, picture_row
from onnxnas.runtime import NUMPY_DTYPES

Row = dict[str, NDArray[Any]]
_CHECKED_AT_ONCE = 64
"""Rows looked at when the data is opened, so that most mistakes show before any work is done."""
_KEPT_BYTES = 1 << 28
"""Of rows kept in memory: a search reads them again and again, and reading one can mean to
decompress all before it, or to decode a picture."""


@dataclass(frozen=True)
class Calibration:
    """Rows of inputs for one model. Opening it reads a few; iterating reads one batch at a time.

    What was read stays in memory up to 256 MiB; the file must not change meanwhile.

    Attributes:
        source: the file or folder.
        rows: indices of the rows, ascending.
        batch: rows in one run: the model's fixed batch, 1 if that is open.
        notes: what was left out and why.
    """

    source: str
    rows: tuple[int, ...]
    batch: int
    notes: tuple[str, ...]
    _read: Callable[[Sequence[int]], Iterator[Row]]
    _whole: frozenset[str] = frozenset()
    """Inputs whose rows are complete inputs, with no batch in front."""

    def __len__(self) -> int:
        return len(self.rows)

    def spread(self, count: int) -> Calibration:
        """At most `count` of the rows, evenly spaced: files are often sorted by class."""
        if count >= len(self.rows):
            return self
        picked = np.linspace(0, len(self.rows) - 1, max(count, self.batch)).round().astype(int)
        return self.subset(sorted({int(i) for i in picked}))

    def subset(self, positions: Sequence[int]) -> Calibration:
        """The rows at some positions, e.g. one half to fit on and the other to measure on."""
        return dataclasses.replace(self, rows=tuple(self.rows[i] for i in sorted(positions)))

    def batches(self, size: int | None = None) -> Iterator[Row]:
        """Inputs for one run after another, in order; the last may have fewer rows.

        Where the model's batch is fixed, rows that do not fill one are left out.

        Args:
            size: rows in one run; only where the model's batch is open. None means `batch`.

        Raises:
            UsageError: a row cannot be read, or holds NaN or infinite values.
        """
        size = size or self.batch
        pending: list[Row] = []
        for row in self._read(self.rows):
            pending.append(row)
            if len(pending) == size:
                yield self._stack(pending)
                pending = []
        if pending and self.batch == 1:
            yield self._stack(pending)

    def _stack(self, rows: list[Row]) -> Row:
        if len(rows) > 1 and self._whole:
            raise ValueError(f"inputs {sorted(self._whole)} have no batch to stack rows in")
        return {
            name: rows[0][name] if name in self._whole else np.stack([r[name] for r in rows])
            for name in rows[0]
        }


def load_calibration(
    path: str | os.PathLike[str],
    inputs: Sequence[Port],
    *,
    mean: str = "0",
    scale: str = "1",
    layout: Literal["nchw", "nhwc"] | str = "nchw",
    channel_order: Literal["rgb", "bgr"] | str = "rgb",
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    limit: int | None = None,
) -> Calibration:
    """Open calibration data.

    Args:
        path: ``.npy`` for a model of one input, ``.npz`` with one array per input under its
            name, or a folder of pictures (searched in depth, sorted by path). The first axis of
            an array counts rows: it takes the place of the input's batch, or stands in front of
            the whole shape of an input that has none.
        inputs: of the model's contract.
        mean: pictures only: the input is (pixel - mean) / scale, pixels 0..255; one number, or
            three with commas in the order of the model's channels.
        scale: see `mean`.
        layout: pictures only: of the model's input.
        channel_order: pictures only: of the model's input.
        input_shapes: fixes dynamic dimensions.
        limit: use at most so many rows, evenly spaced.

    Raises:
        UsageError: the data cannot be read or does not fit the inputs.
    """
    path = Path(path)
    if not inputs:
        raise UsageError("The model has no inputs, so there is nothing to calibrate it with.")
    shapes = dict(input_shapes or {})
    ports = [dataclasses.replace(p, shape=shapes.get(p.name, p.shape)) for p in inputs]
    preprocessing = Preprocessing.parse(mean, scale, layout, channel_order)
    if path.is_dir():
        data = _open_folder(path, ports, preprocessing)
    else:
        if preprocessing != Preprocessing():
            raise UsageError(
                "--mean, --scale, --layout and --channel-order are for folders of pictures; "
                f"the arrays in {path} are used as they are."
            )
        data = _open_arrays(path, ports)
    if limit is not None and limit < 1:
        raise UsageError(f"The limit of calibration rows is {limit}: give at least 1.")
    if len(data) < data.batch:
        raise UsageError(f"{path} has {len(data)} rows, fewer than the model's batch {data.batch}.")
    data = data if limit is None else data.spread(limit)
    data = dataclasses.replace(data, _read=_keeping(data._read, _KEPT_BYTES))
    for _ in data.spread(_CHECKED_AT_ONCE).batches():
        pass
    return data


def _keeping(
    read: Callable[[Sequence[int]], Iterator[Row]], most: int
) -> Callable[[Sequence[int]], Iterator[Row]]:
    """The same rows, of which those read first are kept until they fill `most` bytes."""
    kept: dict[int, Row] = {}
    room = most

    def rows(indices: Sequence[int]) -> Iterator[Row]:
        nonlocal room
        missing = [i for i in indices if i not in kept]
        new, asked = read(missing), set(missing)
        for i in indices:
            if i not in asked:
                yield kept[i]
                continue
            row = next(new)
            size = sum(values.nbytes for values in row.values())
            if i not in kept and size <= room:
                for values in row.values():
                    values.flags.writeable = False
                kept[i], room = row, room - size
            yield row

    return rows


class _StoredArray:
    """An array in a file in NumPy's format, read row by row."""

    def __init__(self, where: str, open_file: Callable[[], IO[bytes]], size: int) -> None:
        self.where, self._open = where, open_file
        try:
            with open_file() as file:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                self.shape, fortran, self.dtype = read(file)
                self._start = file.tell()
        except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{where} is not a NumPy array: {error}.") from error
        if self.dtype.hasobject:
            raise UsageError(f"{where} holds Python objects, which are never loaded.")
        if fortran:
            raise UsageError(f"{where} is in Fortran order: save np.ascontiguousarray of it.")
        if not self.shape or 0 in self.shape:
            raise UsageError(f"{where} has no rows: its shape is {list(self.shape)}.")
        self._row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        if size < self._start + self._row_bytes * self.shape[0]:
            raise UsageError(f"{where} is cut short.")

    def rows(self, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        try:
            with self._open() as file:
                for index in indices:
                    file.seek(self._start + index * self._row_bytes)
                    data = file.read(self._row_bytes)
                    row = np.frombuffer(data, self.dtype).reshape(self.shape[1:])
                    if self.dtype.kind == "f" and not np.isfinite(row).all():
                        raise UsageError(f"{self.where} has NaN or infinite values in row {index}.")
                    yield row.astype(self.dtype.newbyteorder("="), copy=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UsageError(f"{self.where} cannot be read: {error}.") from error


def _open_arrays(path: Path, ports: Sequence[Port]) -> Calibration:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except FileNotFoundError as error:
        raise UsageError(f"There is no calibration data {path}.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    notes: tuple[str, ...] = ()
    if magic == b"\x93NUMPY":
        if len(ports) > 1:
            names = ", ".join(p.name for p in ports)
            raise UsageError(
                f"{path} is one array, but the model has {len(ports)} inputs: save "
                f"an .npz with arrays named {names}."
            )
        size = path.stat().st_size
        arrays = {ports[0].name: _StoredArray(str(path), lambda: path.open("rb"), size)}
    elif magic.startswith(b"PK"):
        arrays, notes = _open_npz(path, ports)
    else:
        raise UsageError(f"{path} is no calibration data: give .npy, .npz or a folder of pictures.")
    counts = {array.shape[0] for array in arrays.values()}
    if len(counts) > 1:
        raise UsageError(f"The arrays in {path} have different numbers of rows: {sorted(counts)}.")
    whole = frozenset(p.name for p in ports if _is_whole(arrays[p.name], p))
    batches = {
        int(p.shape[0]) for p in ports if p.name not in whole and p.shape and is_static(p.shape[0])
    }
    if len(batches) > 1 or (whole and batches - {1}):
        raise UsageError(f"The inputs have different batches, so the rows of {path} do not fit.")

    def read(indices: Sequence[int]) -> Iterator[Row]:
        columns = {name: array.rows(indices) for name, array in arrays.items()}
        for _ in indices:
            yield {name: next(column) for name, column in columns.items()}

    rows = tuple(range(counts.pop()))
    return Calibration(str(path), rows, max(batches, default=1), notes, read, whole)


def _open_npz(path: Path, ports: Sequence[Port]) -> tuple[dict[str, _StoredArray], tuple[str, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {i.filename.removesuffix(".npy"): i.file_size for i in archive.infolist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not an .npz file: {error}.") from error
    missing = [port.name for port in ports if port.name not in sizes]
    if missing:
        raise UsageError(
            f"{path} has no array for input {missing[0]!r}; it has {', '.join(sorted(sizes))}."
        )

    def opener(name: str) -> Callable[[], IO[bytes]]:
        return lambda: zipfile.ZipFile(path).open(f"{name}.npy")

    arrays = {
        p.name: _StoredArray(f"{p.name!r} in {path}", opener(p.name), sizes[p.name]) for p in ports
    }
    extra = sorted(sizes.keys() - arrays.keys())
    notes = (f"not inputs of the model, so not used: {', '.join(extra)}",) if extra else ()
    return arrays, notes


def _is_whole(array: _StoredArray, port: Port) -> bool:
    """Whether a row is a complete input; refuses an array that does not fit the input."""
    wanted = NUMPY_DTYPES.get(port.dtype)
    if wanted is None:
        raise UsageError(f"Input {port.name!r} is of type {port.dtype}, which arrays cannot give.")
    if array.dtype.newbyteorder("=") != wanted:
        raise UsageError(
            f"{array.where} is of type {array.dtype}, but input {port.name!r} of {wanted}: "
            f"save it with .astype('{wanted}')."
        )
    if port.shape is None:
        return False
    whole = len(array.shape) == len(port.shape) + 1
    row = port.shape if whole else port.shape[1:]
    fits = len(row) == len(array.shape) - 1 and all(
        not is_static(want) or want == have for want, have in zip(row, array.shape[1:], strict=True)
    )
    if not fits:
        wanted_shape = ",".join("?" if not is_static(d) else str(d) for d in port.shape[1:])
        raise UsageError(
            f"{array.where} has shape [{','.join(map(str, array.shape))}], but input "
            f"{port.name!r} takes [rows,{wanted_shape}]."
        )
    return whole


def _open_folder(path: Path, ports: Sequence[Port], preprocessing: Preprocessing) -> Calibration:
    if len(ports) > 1:
        raise UsageError(
            f"{path} is a folder, but the model has {len(ports)} inputs: give an .npz file."
        )
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    pictures = [p for p in files if p.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise UsageError(f"{path} has no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    port = ports[0]
    preprocessing.check(port)
    others = [p.name for p in files if p.suffix.lower() not in PICTURE_SUFFIXES]
    notes = (f"{len(others)} files are no pictures, e.g. {others[0]}",) if others else ()

    def read(indices: Sequence[int]) -> Iterator[Row]:
        for index in indices:
            yield {port.name: picture_row(pictures[index], port, preprocessing)}

    assert port.shape is not None
    batch = int(port.shape[0]) if is_static(port.shape[0]) else 1
    return Calibration(str(path), tuple(range(len(pictures))), batch, notes, read)
