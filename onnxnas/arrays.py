"""The same arithmetic on numpy's arrays and on PyTorch's tensors, which name most of it alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxnas.errors import UsageError

Array = Any
"""`numpy.ndarray` or `torch.Tensor`; PyTorch is imported only where it is asked for."""


def library(x: Array) -> Any:
    """`numpy` or `torch`, whichever an array is of."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    import torch

    return torch


def like(values: NDArray[Any] | np.generic, x: Array) -> Array:
    """Values as an array of the library of another, and where that one is; their own type."""
    return values if library(x) is np else on_device(values, x.device)


def check_device(device: str) -> None:
    """Refuse a device of PyTorch that is not there.

    Raises:
        UsageError: neither is PyTorch, or it cannot use the device.
    """
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"Device {device!r} needs PyTorch: pip install 'onnxnas[train]'; numpy does without."
        ) from error
    try:
        float(torch.zeros(1, device=device))  # read back: some devices hold no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"PyTorch cannot use device {device!r}: {reason}") from error


def on_device(values: NDArray[Any] | np.generic, device: Any) -> Array:
    """A tensor on a device of PyTorch."""
    import torch

    return torch.as_tensor(values, device=device)


def to_numpy(x: Array) -> NDArray[Any]:
    """An array of either library as numpy's."""
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


def single_precision(x: Array) -> Array:
    """An array as float32, which tensors here are anyway."""
    return x.astype(np.float32, copy=False) if library(x) is np else x
