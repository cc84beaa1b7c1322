"""Gradients against differences, steps against a fit that is known, PyTorch against numpy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray

from onnxnas import prepare
from onnxnas.arrays import check_device
from onnxnas.errors import UsageError
from onnxnas.gradient_fit import Block, FusedBlock, FusedLayer, Windows, activation, train
from onnxnas.passes.fuse_ibn import FuseIbn
from onnxnas.plugins import load_passes

SAMPLE = Path(__file__).parents[1] / "sample_models" / "camera_classifier.onnx"
PASSES, _ = load_passes()
CELLS, IN, HIDDEN, OUT = 9, 4, 6, 3


def smooth(width: int) -> Any:
    """SiLU: no kinks that differences would stumble over."""
    x, gate, y = (gs.Variable(n, np.float32, [1, width, 1, 1]) for n in ("x", "gate", "y"))
    nodes = [gs.Node("Sigmoid", inputs=[x], outputs=[gate])]
    nodes.append(gs.Node("Mul", inputs=[x, gate], outputs=[y]))
    return activation(nodes, np.arange(width))


def weights(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[NDArray[np.float32]]:
    return [rng.standard_normal(s).astype(np.float32) * 0.4 for s in shapes]


def block(kind: str, rng: np.random.Generator, size: float = 1.0) -> Any:
    """A block; its inner weights times `size`, and what reads them divided by it."""
    act, flat = smooth(HIDDEN), CELLS * IN
    if kind == "three layers":
        shapes = (IN, HIDDEN), (HIDDEN,), (CELLS, HIDDEN), (HIDDEN,), (HIDDEN, OUT), (OUT,)
        return Block(weights(rng, *shapes), act, act)
    if kind == "fused":
        linear = activation([], np.arange(HIDDEN))
        w = weights(rng, (flat, HIDDEN), (HIDDEN,), (HIDDEN, OUT), (OUT,))
        w[0], w[1], w[2] = w[0] * size, w[1] * size, w[2] / size
        return FusedBlock(w, act if size == 1 else linear)
    scale = np.linspace(0.5, 2, HIDDEN, dtype=np.float32)
    return FusedLayer(weights(rng, (flat, HIDDEN), (HIDDEN,)), act, scale)


KINDS = ("three layers", "fused", "one layer")


def windows(rng: np.random.Generator, count: int, outputs: int) -> Windows:
    inside = (rng.random((count, CELLS)) < 0.9).astype(np.float32)
    x = rng.standard_normal((count, CELLS, IN)).astype(np.float32) * inside[:, :, None]
    return Windows(x, inside, rng.standard_normal((count, outputs)).astype(np.float32))


def taught(kind: str, seed: int, size: float = 1.0) -> tuple[Any, Windows, Windows]:
    """A student, and what another block answers on windows to fit on and to tune by."""
    rng = np.random.default_rng(seed)
    teacher, student = block(kind, rng, size), block(kind, rng, size)
    made = [windows(rng, count, 1) for count in (4000, 1000)]
    fit, tune = (Windows(w.x, w.inside, teacher.outputs(w.x, w.inside)) for w in made)
    return student, fit, tune


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_mean_squared_error(kind: str) -> None:
    rng = np.random.default_rng(0)
    student = block(kind, rng)
    data = windows(rng, 200, HIDDEN if kind == "one layer" else OUT)

    def error() -> float:
        wrong = student.outputs(data.x, data.inside).astype(np.float64) - data.y
        return float((wrong**2).mean())

    found = student.gradients(data.x, data.inside, data.y)
    for weight, gradient in zip(student.weights, found, strict=True):
        assert gradient.shape == weight.shape
        at = np.unravel_index(int(np.abs(gradient).argmax()), weight.shape)
        old, step = weight[at], 1e-2
        weight[at] = old + step
        above = error()
        weight[at] = old - step
        numeric = (above - error()) / (2 * step)
        weight[at] = old
        assert gradient[at] == pytest.approx(numeric, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_approach_what_another_block_answers(kind: str) -> None:
    student, fit, tune = taught(kind, 1)
    before = student.weights[0].copy()
    start = train(student, fit, tune, steps=0, rate=0.1, seed=0)
    np.testing.assert_array_equal(student.weights[0], before)
    error = train(student, fit, tune, steps=600, rate=0.1, seed=0)
    assert error < 0.2 * start
    wrong = student.outputs(tune.x, tune.inside) - tune.y
    assert error == pytest.approx(float((wrong**2).mean(0).sum() / tune.y.var(0).sum()), rel=1e-3)


def test_steps_are_in_units_of_the_weights() -> None:
    """Inner weights of another scale, made up for behind them, are trained as well."""
    errors = []
    for size in (0.999, 50.0, 0.02):
        student, fit, tune = taught("fused", 2, size)
        errors.append(train(student, fit, tune, steps=300, rate=0.03, seed=0))
    assert max(errors) < 1.3 * min(errors)


@pytest.mark.parametrize("kind", KINDS)
def test_pytorch_makes_the_same_steps(kind: str) -> None:
    pytest.importorskip("torch")
    found = []
    for device in ("", "cpu"):
        student, fit, tune = taught(kind, 3)
        error = train(student, fit, tune, steps=50, rate=0.03, seed=0, device=device)
        assert all(type(w) is np.ndarray and w.dtype == np.float32 for w in student.weights)
        found.append((error, student.weights))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_device_needs_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxnas\[train\]'"):
        check_device("cuda")


def test_a_device_that_is_not_there_is_refused() -> None:
    torch = pytest.importorskip("torch")
    check_device("cpu")
    for name in ("nowhere", "meta"):
        with pytest.raises(UsageError, match=f"cannot use device '{name}'"):
            check_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cannot use device 'cuda'"):
            check_device("cuda")


def test_passes_make_more_steps_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "check_device", lambda _: None)
    names = ["fuse-ibn", "merge-linear-convs"]
    found = prepare.prepare(SAMPLE, passes=names, device="cuda").passes
    plain = FuseIbn()
    longer = FuseIbn(device="cuda", steps=2 * plain.steps, windows=2 * plain.windows)
    assert found == {n: longer if n == "fuse-ibn" else p for n, p in PASSES.items() if n in names}
