"""Zero-shot scores against hand computations and properties their papers state."""

from __future__ import annotations

import models
import numpy as np
import pytest
from scipy.stats import spearmanr

from onnxnas import proxies
from onnxnas.graph import from_model, static_view
from onnxnas.proxies import assess, partial_rank_correlation, zero_shot


def view(build: models.ModelBuilder, output: str) -> object:
    return static_view(from_model(build.build(output)), {})


def chain(width: int, depth: int = 3) -> object:
    b = models.ModelBuilder([1, 3, 12, 12])
    x, channels = b.x, 3
    for _ in range(depth):
        x = b.op("Relu", b.conv(x, channels, width, 3, pads=1))
        channels = width
    return view(b, b.conv(x, channels, 4))


def test_all_scores_are_there_and_repeat() -> None:
    first, second = zero_shot(chain(8)), zero_shot(chain(8))
    assert first == second
    assert set(first) == {"macs", "parameters", *proxies.SCORES}
    assert zero_shot(chain(8), seed=1)["naswot"] != first["naswot"]


def test_weights_of_the_graph_do_not_matter() -> None:
    graph = chain(8)
    before = zero_shot(graph)
    for tensor in graph.tensors().values():  # type: ignore[attr-defined]
        if hasattr(tensor, "values"):
            tensor.values = tensor.values * np.float32(3)
    assert zero_shot(graph) == before


def test_the_graph_is_not_changed() -> None:
    graph = chain(8)
    held = {
        name: tensor.values.copy()
        for name, tensor in graph.tensors().items()  # type: ignore[attr-defined]
        if hasattr(tensor, "values")
    }
    zero_shot(graph)
    after = graph.tensors()  # type: ignore[attr-defined]
    assert held
    assert all(np.array_equal(after[name].values, values) for name, values in held.items())


def test_wider_and_deeper_scores_more() -> None:
    narrow, wide, deep = zero_shot(chain(4)), zero_shot(chain(16)), zero_shot(chain(4, depth=6))
    assert wide["zen"] > narrow["zen"]
    assert deep["zen"] > narrow["zen"]
    assert wide["naswot"] > narrow["naswot"]


def test_naswot_by_hand() -> None:
    # Rows 110 and 100 agree in two of three units: the kernel is [[3, 2], [2, 3]].
    codes = np.array([[1, 1, 0], [1, 0, 0]], bool)
    packed = np.packbits(codes, axis=1)
    assert proxies._log_determinant(packed, 3) == pytest.approx(np.log(5.0))
    assert proxies._log_determinant(packed[[0, 0]], 3) == -np.inf


def test_meco_by_hand() -> None:
    t = np.arange(64.0)
    a, b = np.sin(2 * np.pi * t / 64), np.cos(2 * np.pi * t / 64)
    independent = np.stack([a, b])[None].reshape(1, 2, 8, 8).astype(np.float32)
    same = np.stack([a, 2 * a])[None].reshape(1, 2, 8, 8).astype(np.float32)
    assert proxies._least_eigenvalue(independent) == pytest.approx(1.0, abs=1e-6)
    assert proxies._least_eigenvalue(same) == pytest.approx(0.0, abs=1e-6)


def test_a_model_without_layers_has_baselines_only() -> None:
    b = models.ModelBuilder([1, 3, 4, 4])
    assert set(zero_shot(view(b, b.op("Add", b.x, b.x)))) == {"macs", "parameters"}


def test_partial_correlation_takes_latency_out() -> None:
    rng = np.random.default_rng(0)
    cycles = rng.uniform(1, 2, 200)
    hidden = rng.standard_normal(200)
    score, damage = cycles + 0.01 * hidden, -cycles - 0.01 * hidden
    noise = cycles + 0.01 * rng.standard_normal(200)
    assert spearmanr(noise, -damage).statistic > 0.9  # looks good only through latency
    assert abs(partial_rank_correlation(noise.tolist(), (-damage).tolist(), cycles.tolist())) < 0.2
    assert partial_rank_correlation(score.tolist(), (-damage).tolist(), cycles.tolist()) > 0.9
    assert partial_rank_correlation([1.0] * 9, list(range(9)), list(range(9))) == 0.0


def test_only_a_score_that_beats_the_baselines_is_useful() -> None:
    rng = np.random.default_rng(0)
    damage = rng.uniform(0, 1, 40)
    cycles = rng.uniform(1, 2, 40)
    rows = [
        {"macs": float(m), "parameters": float(p), "naswot": float(-d), "zen": float(d)}
        for m, p, d in zip(rng.uniform(size=40), rng.uniform(size=40), damage, strict=True)
    ]
    ranks = {r.score: r for r in assess(rows, cycles.tolist(), damage.tolist())}
    assert ranks["naswot"].useful
    assert ranks["naswot"].correlation > 0.99
    assert not ranks["zen"].useful
    assert not ranks["macs"].useful
    assert "meco" not in ranks
    assert ranks["zen"].reason == "what it prefers loses no less"
    assert ranks["parameters"].reason == "a baseline"
    known = [{**row, proxies.SUM: -d} for row, d in zip(rows, damage, strict=True)]
    (naswot,) = (r for r in assess(known, cycles.tolist(), damage.tolist()) if r.score == "naswot")
    assert (naswot.useful, naswot.reason) == (False, f"{proxies.SUM} ranks them at least as well")
    assert assess(rows[:7], cycles[:7].tolist(), damage[:7].tolist()) == ()


def test_one_lucky_candidate_makes_no_score_useful() -> None:
    damage = [float(d) for d in range(1, 10)]
    known, missed = [-d for d in damage], [*(-d for d in damage[:-1]), 0.0]
    rows = [{"macs": m, "parameters": 0.0, "naswot": s} for m, s in zip(missed, known, strict=True)]
    ranks = {r.score: r for r in assess(rows, [1.0] * 9, damage)}
    assert ranks["naswot"].correlation > 0.99 > ranks["macs"].correlation
    assert ranks["naswot"].reason == "it is ahead by no more than one candidate"


def test_what_chance_gives_is_no_use() -> None:
    rng = np.random.default_rng(4)
    useful = []
    for _ in range(200):  # scores that know nothing
        damage, macs, score = rng.uniform(size=(3, 12))
        rows = [{"macs": float(m), "naswot": float(s)} for m, s in zip(macs, score, strict=True)]
        (_, naswot) = assess(rows, [1.0] * 12, damage.tolist())
        useful.append(naswot.useful)
        if 0 < naswot.correlation < 0.5:
            assert "ranks them at least" in naswot.reason or "chance alone" in naswot.reason
    assert sum(useful) < 0.06 * len(useful)
