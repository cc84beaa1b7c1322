"""The three sample networks, in PyTorch; `width` scales every channel count but inputs and classes.

All are made of inverted-bottleneck blocks (Sandler et al. 2018, arXiv:1801.04381), with
squeeze-excite and hard-swish as in Howard et al. 2019 (arXiv:1905.02244) where said. Inputs are
pixels / 255, (N, 3, size, size), RGB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def _scaler(width: float) -> Callable[[int], int]:
    return lambda channels: max(3, round(channels * width))


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, act: Activation | None, groups: int = 1
) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, act()) if act else nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(3, round(channels / 8))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class InvertedBottleneck(nn.Module):
    """1x1 expand, KxK depthwise, optional squeeze-excite, 1x1 project, residual where it fits."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, act: Activation,
        stride: int = 1, kernel: int = 3, excite: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            _conv(inputs, hidden, 1, 1, act),
            _conv(hidden, hidden, kernel, stride, act, groups=hidden),
            SqueezeExcite(hidden) if excite else nn.Identity(),
            _conv(hidden, outputs, 1, 1, None),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class CameraClassifier(nn.Module):
    """Hard-swish and squeeze-excite; output `logits` (N, classes)."""

    size = 96
    outputs = ("logits",)

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        c, act = _scaler(width), nn.Hardswish

        def block(inputs: int, hidden: int, outputs: int, **options: int) -> InvertedBottleneck:
            return InvertedBottleneck(c(inputs), c(hidden), c(outputs), act, **options)

        self.body = nn.Sequential(
            _conv(3, c(20), 3, 2, act),
            block(20, 80, 22, stride=2),
            block(22, 66, 22),
            block(22, 88, 36, stride=2, kernel=5, excite=True),
            block(36, 144, 36, kernel=5, excite=True),
            block(36, 144, 36, excite=True),
            block(36, 180, 68, stride=2, excite=True),
            block(68, 272, 68, kernel=5, excite=True),
            block(68, 272, 68, excite=True),
            _conv(c(68), c(216), 1, 1, act),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(c(216), classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def anchors(size: int = 128) -> np.ndarray:
    """Centre x, centre y, width, height of every anchor, in 0..1: (anchors, 4) float32.

    Six per cell of the stride-8 and stride-16 maps, in the order of the network's outputs: rows,
    columns, then shapes (person-like, square, animal-like, each in two sizes).
    """
    boxes = []
    for stride, scales in ((8, (0.12, 0.18)), (16, (0.27, 0.4))):
        cells = size // stride
        at = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(at, at, indexing="ij")
        shapes = [(s * r**0.5, s / r**0.5) for s in scales for r in (0.45, 1.0, 1.8)]
        cell = [np.stack([x, y, np.full_like(x, w), np.full_like(x, h)], -1) for w, h in shapes]
        boxes.append(np.stack(cell, 2).reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32)


class PresenceDetector(nn.Module):
    """ReLU6, SSD-style: outputs `boxes` (N, anchors, 4) as x0, y0, x1, y1 in 0..1 and `scores`
    (N, anchors, classes) in 0..1, before non-maximum suppression.

    A box is its anchor's corners plus the head's corner offsets times a quarter of the anchor's
    width and height: linear, so the decoding inside the graph is one Mul and one Add.
    """

    size = 128
    outputs = ("boxes", "scores")

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        c, act = _scaler(width), nn.ReLU6
        self.classes, self.shapes = classes, 6

        def block(inputs: int, hidden: int, outputs: int, stride: int = 1) -> InvertedBottleneck:
            return InvertedBottleneck(c(inputs), c(hidden), c(outputs), act, stride)

        self.fine = nn.Sequential(
            _conv(3, c(16), 3, 2, act),
            block(16, 48, 20, stride=2),
            block(20, 80, 20),
            block(20, 100, 36, stride=2),
            block(36, 144, 36),
            block(36, 144, 36),
            block(36, 180, 52),
            block(52, 208, 52),
        )
        self.coarse = nn.Sequential(
            block(52, 260, 84, stride=2),
            block(84, 336, 84),
            block(84, 336, 84),
        )
        self.heads = nn.ModuleList(self._head(c(n), act) for n in (52, 84))
        box = torch.from_numpy(anchors(self.size))
        self.register_buffer("corners", torch.cat([box[:, :2] - box[:, 2:] / 2,
                                                   box[:, :2] + box[:, 2:] / 2], 1))  # fmt: skip
        self.register_buffer("reach", torch.cat([box[:, 2:], box[:, 2:]], 1) / 4)

    def _head(self, channels: int, act: Activation) -> nn.Sequential:
        final = nn.Conv2d(channels, self.shapes * (4 + self.classes), 1)
        assert final.bias is not None
        final.weight.data.mul_(0.1)
        final.bias.data.view(self.shapes, -1)[:, :4] = 0.0
        final.bias.data.view(self.shapes, -1)[:, 4:] = -4.0  # few anchors hold an object
        return nn.Sequential(_conv(channels, channels, 3, 1, act, groups=channels), final)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Corner offsets (N, anchors, 4) and class logits (N, anchors, classes)."""
        fine = self.fine(x)
        maps = [head(y) for head, y in zip(self.heads, (fine, self.coarse(fine)), strict=True)]
        flat = [m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, 4 + self.classes) for m in maps]
        both = torch.cat(flat, 1)
        return both[..., :4], both[..., 4:]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        offsets, logits = self.raw(x)
        return self.corners + offsets * self.reach, logits.sigmoid()


class RoomSegmenter(nn.Module):
    """ReLU encoder-decoder with two skips and bilinear resizing; output `logits`
    (N, classes, size, size).
    """

    size = 160
    outputs = ("logits",)

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        c, act = _scaler(width), nn.ReLU

        def block(inputs: int, hidden: int, outputs: int, stride: int = 1, kernel: int = 3
                  ) -> InvertedBottleneck:  # fmt: skip
            return InvertedBottleneck(c(inputs), c(hidden), c(outputs), act, stride, kernel)

        self.quarter = nn.Sequential(
            _conv(3, c(12), 3, 2, act), block(12, 36, 18, stride=2), block(18, 72, 18)
        )
        self.eighth = nn.Sequential(block(18, 72, 28, stride=2), block(28, 112, 28))
        self.sixteenth = nn.Sequential(
            block(28, 140, 52, stride=2), block(52, 208, 52, kernel=5), block(52, 208, 52)
        )
        self.from_sixteenth = _conv(c(52), c(28), 1, 1, None)
        self.merge_eighth = block(28, 112, 28)
        self.from_eighth = _conv(c(28), c(18), 1, 1, None)
        self.merge_quarter = nn.Sequential(block(18, 72, 18), block(18, 72, 18))
        self.head = nn.Conv2d(c(18), classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.quarter(x)
        eighth = self.eighth(quarter)
        y = self.merge_eighth(eighth + _double(self.from_sixteenth(self.sixteenth(eighth))))
        y = self.merge_quarter(quarter + _double(self.from_eighth(y)))
        return _double(_double(self.head(y)))


def _double(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


NETWORKS: dict[str, type[CameraClassifier] | type[PresenceDetector] | type[RoomSegmenter]] = {
    "camera_classifier": CameraClassifier,
    "presence_detector": PresenceDetector,
    "room_segmenter": RoomSegmenter,
}
