"""From a picture file to one row of a model's input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxnas.errors import UsageError
from onnxnas.graph import Port, is_static
from onnxnas.runtime import NUMPY_DTYPES

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_EIGHT_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "La", "RGBa"})


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become inputs: (pixel - mean) / scale, pixels 0..255.

    Attributes:
        mean, scale: one value, or one per channel in the order of the model's channels.
        layout: ``nchw`` or ``nhwc``, of the model's input.
        channel_order: ``rgb`` or ``bgr``, of the model's input.
    """

    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    layout: str = "nchw"
    channel_order: str = "rgb"

    @classmethod
    def parse(cls, mean: str, scale: str, layout: str, channel_order: str) -> Preprocessing:
        """From the texts of the command line.

        Raises:
            UsageError: one of them cannot be read.
        """
        if layout not in ("nchw", "nhwc"):
            raise UsageError(f"Unknown layout {layout!r}: it is nchw or nhwc.")
        if channel_order not in ("rgb", "bgr"):
            raise UsageError(f"Unknown channel order {channel_order!r}: it is rgb or bgr.")
        scales = _numbers("--scale", scale)
        if 0.0 in scales:
            raise UsageError(f"--scale {scale} divides by zero.")
        return cls(_numbers("--mean", mean), scales, layout, channel_order)

    def check(self, port: Port) -> None:
        """Refuse an input that no picture can be made into.

        Raises:
            UsageError: it has no fixed height and width, or not 1 or 3 channels.
        """
        if port.shape is None or len(port.shape) != 4:
            raise UsageError(f"Input {port} is no picture: give calibration data as .npy.")
        if port.dtype not in NUMPY_DTYPES or port.dtype == "bool":
            raise UsageError(f"Input {port} takes no pixels: give calibration data as .npy.")
        channels, height, width = self._sizes(port)
        if not is_static(height) or not is_static(width):
            raise UsageError(
                f"Input {port} has no fixed height and width to scale pictures to: give "
                f"--input-shape {port.name}:1,3,224,224."
            )
        if is_static(channels) and channels not in (1, 3):
            raise UsageError(
                f"Input {port} has {channels} channels in layout {self.layout}, pictures have "
                "1 or 3: check --layout."
            )
        if channels == 1 and max(len(self.mean), len(self.scale)) > 1:
            raise UsageError(f"Input {port} has one channel: give one --mean and one --scale.")

    def size(self, port: Port) -> tuple[int, int, int]:
        """Channels, height and width of an input that `check` accepts; open channels are 3."""
        channels, height, width = self._sizes(port)
        return channels if is_static(channels) else 3, height, width

    def _sizes(self, port: Port) -> tuple[Any, Any, Any]:
        assert port.shape is not None
        _, a, b, c = port.shape
        return (a, b, c) if self.layout == "nchw" else (c, a, b)


def picture_row(path: Path, port: Port, preprocessing: Preprocessing) -> NDArray[Any]:
    """A picture as one row of an input, without batch.

    Scaled to the input's height and width with Pillow's bilinear filter, which averages over
    all pixels when it scales down; the ratio of the sides is not kept, and a rotation noted in
    the file is not applied.

    Raises:
        UsageError: the file is no picture of 8 bits per channel, or the values do not fit the
            input's type.
    """
    channels, height, width = preprocessing.size(port)
    try:
        with Image.open(path) as picture:
            if picture.mode not in _EIGHT_BIT:
                raise UsageError(
                    f"Picture {path} has pixels of kind {picture.mode}: convert it to 8 bits "
                    "per channel."
                )
            plain = picture.convert("RGB" if channels == 3 else "L")
            scaled = plain.resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"Picture {path} cannot be read: {str(error).rstrip('.')}.") from error
    pixels = np.asarray(scaled, np.float64).reshape(height, width, channels)
    if preprocessing.channel_order == "bgr":
        pixels = pixels[:, :, ::-1]
    values = (pixels - np.asarray(preprocessing.mean)) / np.asarray(preprocessing.scale)
    dtype = NUMPY_DTYPES[port.dtype]
    if dtype.kind in "iu":
        values, info = np.rint(values), np.iinfo(dtype)
        if values.min() < info.min or values.max() > info.max:
            raise UsageError(
                f"With this --mean and --scale, pixels do not fit input {port.name!r} of "
                f"type {dtype}."
            )
    row = values.astype(dtype)
    return np.ascontiguousarray(row.transpose(2, 0, 1) if preprocessing.layout == "nchw" else row)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in str(text).split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(math.isfinite(n) for n in numbers):
        raise UsageError(f"Cannot read {option} {text!r}: write one number, or three with commas.")
    return numbers
