"""Random networks from the space that rewrites move in: what cost models are trained on.

A network is a function of its family and seed. Families are the ways small networks for edge
devices are built; inside one, widths, windows, strides, resolutions, expansion ratios,
activations, padding conventions and weight distributions vary together per network, as in real
ones, and single layers break the pattern as rewrites do: fused bottlenecks, groups merged into
block-diagonal convolutions, widths beside a multiple of the parallelism factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxnas.hwmodels.network_builder import NetworkBuilder
from onnxnas.hwmodels.network_variants import varied

TRAINING_FAMILIES: tuple[str, ...] = (
    "bottlenecks",
    "bottlenecks",  # the heart of the rewrite space: twice as often
    "separable",
    "residual",
    "plain",
    "detector",
    "segmenter",
    "concatenating",
    "maps",
)
"""Drawn from in turn."""

RARE_FAMILIES: Mapping[int, str] = {44: "large-maps", 26: "flat", 17: "thin"}
"""Take these places of every 45 networks."""

HELD_OUT_FAMILIES: tuple[str, ...] = ("attention-detector", "encoder-decoder")
"""Never trained on: they show how a model does on networks built in other ways."""


def sample_network(family: str, seed: int) -> Any:
    """One network with static shapes, as `gs.Graph`; the same for the same arguments.

    Raises:
        KeyError: there is no such family.
    """
    build = _FAMILIES[family]
    b = NetworkBuilder(np.random.default_rng([seed, *family.encode()]))
    build(b)
    return b.finish(f"{family}-{seed}")


def training_plan(count: int, first: int = 0) -> list[tuple[str, int]]:
    """Family and seed of `count` training networks, starting with the one numbered `first`."""
    numbers = range(first, first + count)
    cycle = 5 * len(TRAINING_FAMILIES)
    common = TRAINING_FAMILIES
    return [(RARE_FAMILIES.get(n % cycle, common[n % len(common)]), n) for n in numbers]


def _bottlenecks(b: NetworkBuilder) -> None:
    """MobileNetV2 and V3, EfficientNet-Lite, MobileDets."""
    x = b.image(stem=True)
    fused = b.rng.choice([0.0, 0.3, 0.8])
    squeeze = b.rng.choice([0.0, 0.0, 0.4])
    base = int(b.rng.integers(8, 33))
    for width, repeats, stride in b.stages(base, b.rng.integers(4, 8)):
        expansion = b.rng.choice([1, 2, 3, 4, 6, 6, 8])
        window = b.window()
        for i in range(repeats):
            x = b.bottleneck(
                x,
                width,
                expansion,
                window,
                stride if i == 0 else 1,
                fused=b.chance(fused),
                squeeze=b.chance(squeeze),
            )
    b.classifier(x)


def _separable(b: NetworkBuilder) -> None:
    """MobileNetV1 and its kin."""
    x = b.image(stem=True)
    for width, repeats, stride in b.stages(int(b.rng.integers(8, 49)), b.rng.integers(4, 7)):
        for i in range(repeats):
            x = b.activate(b.depthwise(x, b.window(), stride if i == 0 else 1))
            x = b.activate(b.conv(x, width))
    b.classifier(x)


def _residual(b: NetworkBuilder) -> None:
    """ResNet and ResNeXt: two plain convolutions, or a bottleneck with a grouped one."""
    x = b.image(stem=True)
    if b.chance(0.5):
        x = b.pool(x, "MaxPool", 3, 2)
    deep = b.chance(0.5)
    group_width = int(b.rng.choice([0, 0, 4, 8, 16, 32]))
    for width, repeats, stride in b.stages(int(b.rng.integers(8, 49)), b.rng.integers(3, 5)):
        for i in range(min(repeats, 3)):
            x = b.residual(x, width, stride if i == 0 else 1, deep, group_width)
    b.classifier(x)


def _plain(b: NetworkBuilder) -> None:
    """Convolutions one after the other, any width, with pools: VGG, face and keyword networks."""
    x = b.image(stem=False)
    for width, repeats, stride in b.stages(int(b.rng.integers(6, 41)), b.rng.integers(3, 6)):
        pooled = stride > 1 and b.chance(0.4)
        if pooled:
            x = b.pool(x, b.pick("MaxPool", "AveragePool"), int(b.rng.integers(2, 4)), 2)
        for i in range(repeats):
            step = stride if i == 0 and not pooled else 1
            groups = int(b.rng.choice([1, 1, 1, 2, 4]))
            x = b.activate(b.conv(x, width, b.window(), step, groups=groups))
    b.classifier(x)


def _detector(b: NetworkBuilder) -> None:
    """A bottleneck backbone with raw heads at two or three scales, top-down connections."""
    x = b.image(stem=True, largest=416, halvings=5)
    scales = []
    for width, repeats, stride in b.stages(int(b.rng.integers(4, 25)), 5):
        if stride > 1:
            scales.append(x)
        expansion = b.rng.choice([2, 3, 4, 6])
        window = b.window()
        for i in range(repeats):
            x = b.bottleneck(x, width, expansion, window, stride if i == 0 else 1, b.chance(0.15))
    if b.chance(0.5):
        pooled = [b.pool(x, "MaxPool", k, 1) for k in (3, 5, 9)]
        x = b.conv(b.concat([x, *pooled]), b.round(b.channels(x) * 0.75))
    outputs = int(b.rng.integers(12, 96))
    width = b.round(int(b.rng.integers(24, 129)))
    x = b.activate(b.conv(x, width))
    b.head(x, outputs)
    for skip in reversed(scales[-2:]):
        if b.size(skip) <= b.size(x):
            continue
        x = b.resize(x, b.size(skip))
        x = b.concat([x, skip]) if b.chance(0.5) else b.add(x, b.conv(skip, b.channels(x)))
        x = b.activate(b.conv(b.activate(b.depthwise(x, 3, 1)), width))
        b.head(x, outputs)


def _segmenter(b: NetworkBuilder) -> None:
    """A dilated bottleneck backbone, pyramid pooling, resized class maps."""
    x = b.image(stem=True, largest=416, halvings=5)
    early = None
    for n, (width, repeats, stride) in enumerate(b.stages(int(b.rng.integers(8, 21)), 5)):
        dilation = 1 if n < 3 else int(b.rng.choice([1, 2, 4]))
        for i in range(repeats):
            step = stride if i == 0 and dilation == 1 else 1
            x = b.bottleneck(
                x, width, b.rng.choice([2, 4, 6]), 3, step, b.chance(0.15), dilation=dilation
            )
        early = x if n == 1 else early
    width = b.round(int(b.rng.integers(24, 129)))
    if b.chance(0.6):
        pooled = b.activate(b.conv(b.global_pool(x), width))
        branches = [b.activate(b.conv(x, width)), b.resize(pooled, b.size(x))]
        x = b.activate(b.conv(b.concat(branches), width))
    if early is not None and b.chance(0.4):
        x = b.resize(x, b.size(early))
        x = b.concat([x, b.activate(b.conv(early, b.round(width / 3)))])
        x = b.activate(b.conv(x, width, 3))
    x = b.conv(x, int(b.rng.integers(2, 30)))
    b.dense_map(x)


def _concatenating(b: NetworkBuilder) -> None:
    """Branches joined by concatenation: Inception, cross-stage partial, ghost and dense blocks."""
    x = b.image(stem=True)
    for width, repeats, stride in b.stages(int(b.rng.integers(12, 41)), 4):
        x = b.activate(b.conv(x, width, b.pick(1, 3), stride))
        style = b.pick("partial", "ghost", "dense", "branches")
        for _ in range(min(repeats, 2)):
            if style == "partial":
                half = b.round(width / 2)
                y = b.activate(b.conv(x, half))
                for _ in range(2):
                    y = b.residual(y, half, 1, b.chance(0.5), 0)
                x = b.activate(b.conv(b.concat([y, b.activate(b.conv(x, half))]), width))
            elif style == "ghost":
                y = b.activate(b.conv(x, b.round(width / 2)))
                x = b.concat([y, b.activate(b.depthwise(y, 3, 1))])
            elif style == "dense":
                x = b.concat([x, b.activate(b.conv(x, b.round(width / 3), 3))])
            else:
                parts = [b.activate(b.conv(x, b.round(width / 3), k)) for k in (1, 3, 5)]
                x = b.concat([*parts, b.conv(b.pool(x, "AveragePool", 3, 1), b.round(width / 4))])
    b.classifier(x)


def _maps(b: NetworkBuilder) -> None:
    """Little but the end of a network that answers per pixel, at many sizes and scales."""
    x = b.image(stem=True, largest=416, halvings=4)
    x = b.activate(b.conv(x, b.round(int(b.rng.integers(8, 49))), 3, 2))
    if b.chance(0.7):
        x = b.bottleneck(x, b.round(int(b.rng.integers(8, 65))), 2, 3, 2)
    b.dense_map(b.conv(x, int(b.rng.integers(1, 36))))


def _flat(b: NetworkBuilder) -> None:
    """Images of text lines, signals and spectra: much wider than high, or the reverse."""
    b.aspect = float(b.rng.choice([3, 4, 6, 0.25]))
    b.pick(_bottlenecks, _bottlenecks, _separable, _residual)(b)


def _thin(b: NetworkBuilder) -> None:
    """Few channels at high resolution, as the first stages of the smallest detectors."""
    b.divisor = int(b.pick(2, 4, 4))
    b.stems = (4, 6, 8, 8)
    x = b.image(stem=True, largest=416, halvings=4)
    for width, repeats, stride in b.stages(int(b.rng.integers(3, 8)), 5):
        expansion, window = b.rng.choice([1, 2, 4, 6]), b.pick(3, 3, 5)
        for i in range(repeats):
            x = b.bottleneck(x, width, expansion, window, stride if i == 0 else 1)
    b.head(x, int(b.rng.integers(6, 80)))


def _large_maps(b: NetworkBuilder) -> None:
    """The end of a segmenter at its full size: large resizes and the arg-max of many pixels."""
    x = b.image(stem=True, largest=128, halvings=4, odd=0.8)
    if b.chance(0.6):
        x = b.activate(b.conv(x, b.round(int(b.rng.integers(8, 33))), 3, 2))
    x = b.conv(x, int(b.rng.integers(2, 34)))
    pixels = int(b.rng.choice([60_000, 120_000, 280_000]))
    height, width = b.size(x)
    if height % 2 and width % 2:
        scale = max((s for s in (2, 4, 8, 16) if height * width * s * s <= pixels), default=1)
        if scale > 1:
            x = b.resize(x, (height * scale - scale + 1, width * scale - scale + 1), linear=True)
    else:  # in steps of 2, the only ones that all targets have
        while height * width * 4 <= pixels:
            height, width = 2 * height, 2 * width
            x = b.resize(x, (height, width))
    b.output(b.op("ArgMax", [x], [1, *b.size(x)], np.int64, axis=1, keepdims=0))


def _attention_detector(b: NetworkBuilder) -> None:
    """Held out: a squeeze-excite backbone of mixed blocks, a bottom-up and top-down neck."""
    x = b.image(stem=True, largest=320, halvings=5)
    scales = []
    for n, (width, repeats, stride) in enumerate(b.stages(int(b.rng.integers(8, 21)), 5)):
        if stride > 1:
            scales.append(x)
        for i in range(repeats):
            step = stride if i == 0 else 1
            if n < 2:
                x = b.residual(x, width, step, False, 0)
            else:
                x = b.bottleneck(x, width, 4, b.window(), step, False, squeeze=b.chance(0.5))
    width = b.round(int(b.rng.integers(24, 97)))
    skip = scales[-1]
    down = b.activate(b.conv(x, width))
    up = b.resize(down, b.size(skip))
    y = b.activate(b.conv(b.concat([up, b.conv(skip, width)]), width))
    b.head(y, 18)
    again = b.activate(b.depthwise(y, 5, 2))
    if b.size(again) == b.size(down):
        down = b.add(down, again)
    b.head(b.activate(b.conv(down, width)), 18)


def _encoder_decoder(b: NetworkBuilder) -> None:
    """Held out: a U-shaped network of separable and plain convolutions."""
    x = b.image(stem=False, largest=256, halvings=5)
    base, skips = int(b.rng.integers(8, 25)), []
    separable = b.chance(0.5)

    def block(x: Any, width: int) -> Any:
        if separable:
            return b.activate(b.conv(b.activate(b.depthwise(x, 3, 1)), width))
        return b.activate(b.conv(x, width, 3))

    x = b.activate(b.conv(x, b.round(base), 3, 2))
    for level in range(int(b.rng.integers(2, 5))):
        x = block(x, b.round(base * 2**level))
        skips.append(x)
        x = b.pool(x, "MaxPool", 2, 2)
    x = block(x, b.channels(x) * 2)
    for skip in reversed(skips):
        x = b.concat([b.resize(x, b.size(skip)), skip])
        x = block(block(x, b.channels(skip)), b.channels(skip))
    b.dense_map(b.conv(x, int(b.rng.integers(1, 12))))


_FAMILIES: Mapping[str, Callable[[NetworkBuilder], None]] = {
    "bottlenecks": _bottlenecks,
    "separable": _separable,
    "residual": _residual,
    "plain": _plain,
    "detector": _detector,
    "segmenter": _segmenter,
    "concatenating": _concatenating,
    "maps": _maps,
    "large-maps": _large_maps,
    "flat": _flat,
    "thin": _thin,
    "attention-detector": _attention_detector,
    "encoder-decoder": _encoder_decoder,
}


def variants(
    name: str, graph: Any, count: int, first: int = 0
) -> list[tuple[str, Callable[[], Any]]]:
    """Copies of a user's network with other widths and weights: training data near to it.

    Args:
        name: of the network.
        graph: `gs.Graph` with static shapes.
        count: how many.
        first: number of the first.

    Returns:
        names, and what makes the graphs; a network whose widths cannot be changed comes with
        other weights only.
    """

    def named(number: int) -> tuple[str, Callable[[], Any]]:
        rng = np.random.default_rng([number, *name.encode()])
        return f"like-{name}-{number}", lambda: varied(graph, rng)

    return [named(n) for n in range(first, first + count)]
