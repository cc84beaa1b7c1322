from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from fakes import TARGET, ToyCostModel
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ModelBuilder

from onnxnas.cost import Cost, KernelCost
from onnxnas.errors import OnnxnasError, UnsupportedError, UsageError
from onnxnas.graph import from_model, static_view
from onnxnas.hwmodels import active, catboost_model, dataset, measuring, sampling, training
from onnxnas.hwmodels.accuracy import accuracy
from onnxnas.hwmodels.baseline import Baseline
from onnxnas.hwmodels.catboost_model import CatBoostCostModel
from onnxnas.hwmodels.coverage import Coverage
from onnxnas.hwmodels.features import FEATURES, feature_matrix
from onnxnas.hwmodels.kernel_table import KernelTable
from onnxnas.hwmodels.qualification import PREDICTED, Subject, qualify
from onnxnas.kernels import split_kernels

SOURCE = training.Source("toy", "1.0", "estimate")
QUICK = training.Settings(
    trees={"conv": 60, "other": 20},
    depth={"conv": 4, "other": 3},
    learning_rate={"conv": 0.3, "other": 0.3},
    threads=1,
)


def tiny(seed: int) -> Any:
    """A network of a few layers, sizes by seed."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([8, 12, 16]))
    b = ModelBuilder([1, 3, size, size], seed=seed)
    width = int(rng.integers(4, 40))
    x = b.op("Relu", b.conv(b.x, 3, width, 3, pads=1))
    x = b.op("Relu", b.depthwise(x, width))
    y = b.conv(x, width, int(rng.integers(4, 40)))
    return static_view(from_model(b.build(y)), {})


def tinies(count: int, first: int = 0) -> list[measuring.Named]:
    return [(f"tiny-{n}", partial(tiny, n)) for n in range(first, first + count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dataset.Dataset:
    folder = tmp_path_factory.mktemp("data")
    measuring.measure(ToyCostModel(), folder, tinies(60))
    return dataset.read(folder)


@pytest.fixture(scope="module")
def trained(data: dataset.Dataset) -> training.Trained:
    return training.train(data, TARGET.to_dict(), SOURCE, QUICK)


@pytest.fixture
def model(trained: training.Trained) -> CatBoostCostModel:
    return trained.model


class Stumbling(ToyCostModel):
    """Dies, or refuses, when it meets certain networks."""

    def __init__(self, dies_at: int = -1, refuses: str = "") -> None:
        super().__init__()
        self.dies_at, self.refuses = dies_at, refuses

    def cost(self, graph: Any) -> Cost:
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        if graph.name == self.refuses:
            raise UnsupportedError("Not today.")
        return super().cost(graph)


def test_kernels_that_were_seen_add_up_to_the_cost(model: CatBoostCostModel) -> None:
    graphs = [tiny(70), tiny(71)]
    for seen, cost in zip(model.see(graphs), model.cost_many(graphs), strict=True):
        assert [k.output for k in seen] == [k.output for k in cost.kernels]
        cycles = model.cycles_of([k.key for k in seen])
        assert cycles.tolist() == pytest.approx([k.cycles for k in cost.kernels], rel=1e-12)
        assert sum(k.macs for k in seen) == cost.macs
        assert round(sum(k.weight_bytes for k in seen)) == cost.weight_bytes
        assert max(k.live_bytes for k in seen) == cost.peak_activation_bytes
    assert np.isnan(model.cycles_of([None])).all()


def test_measuring_resumes_after_a_kill(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(Stumbling(dies_at=12), tmp_path, tinies(20))
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert len(kept) == 8  # the first batch, whole files only
    said: list[tuple[int, int]] = []
    backend = ToyCostModel()
    done = measuring.measure(
        backend, tmp_path, tinies(20), lambda done, count, left: said.append((done, count))
    )
    assert (done.measured, done.known, backend.calls) == (12, 8, 12)
    assert said == [(16, 20), (20, 20)]
    straight = tmp_path / "straight"
    measuring.measure(ToyCostModel(), straight, tinies(20))
    assert dataset.read(straight).sha256 == dataset.read(tmp_path).sha256


def test_a_refused_network_does_not_spoil_its_batch(tmp_path: Path) -> None:
    def named(seed: int) -> Any:
        graph = tiny(seed)
        graph.name = f"n{seed}"
        return graph

    plan: list[measuring.Named] = [(f"n-{s}", partial(named, s)) for s in range(4)]
    done = measuring.measure(Stumbling(refuses="n2"), tmp_path, plan)
    assert done.failed == (("n-2", "Not today."),)
    assert dataset.read(tmp_path).names == ("n-0", "n-1", "n-3")


def test_labels_add_up_to_the_total(data: dataset.Dataset) -> None:
    totals = data.network_cycles()
    for name, total in zip(data.names, totals, strict=True):
        graph = tiny(int(name.split("-")[1]))
        assert total == pytest.approx(ToyCostModel().cost(graph).cycles)


def test_a_chained_kernel_gives_its_cycles_to_the_one_with_the_work() -> None:
    b = ModelBuilder([1, 4, 4, 4])
    y = b.conv(b.x, 4, 4)
    z = b.op("Add", b.x, y)
    kernels = split_kernels(static_view(from_model(b.build(z)), {}))
    cost = Cost("t", "estimate", 7, 0, 0, {}, 0, (KernelCost(z, "Conv2D", (y, z), 7.0),))
    assert measuring.kernel_cycles(kernels, cost).tolist() == [7.0, 0.0]
    missing = Cost("t", "estimate", 0, 0, 0, {}, 0, (KernelCost(z, "?", (z,), None, reason="no"),))
    assert np.isnan(measuring.kernel_cycles(kernels, missing)).tolist() == [False, True]
    stray = Cost("t", "estimate", 1, 0, 0, {}, 0, (KernelCost("q", "Conv2D", ("q",), 1.0),))
    with pytest.raises(OnnxnasError, match="'q'"):
        measuring.kernel_cycles(kernels, stray)


def test_a_dataset_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target measure"):
        dataset.read(tmp_path)
    np.savez(tmp_path / "tiny-0.npz", columns=np.array(["old"]))
    with pytest.raises(UsageError, match="another version"):
        dataset.read(tmp_path)


def test_selecting_networks_keeps_their_rows(data: dataset.Dataset) -> None:
    part = data.select(lambda name: name in ("tiny-3", "tiny-11"))
    assert part.names == ("tiny-3", "tiny-11")
    alone = KernelTable.of([split_kernels(tiny(3)), split_kernels(tiny(11))])
    assert np.array_equal(part.table.numbers, alone.numbers)
    assert part.table.starts.tolist() == alone.starts.tolist()


def test_the_model_learns(model: CatBoostCostModel) -> None:
    graphs = [tiny(seed) for seed in range(1000, 1030)]
    true = np.array([ToyCostModel().cost(g).cycles for g in graphs])
    guess = np.array([c.cycles for c in model.cost_many(graphs)])
    found = accuracy(true, guess)
    assert found.mape < 0.12
    assert found.kendall > 0.85


def test_costs_are_sums_and_kinds_are_right(model: CatBoostCostModel) -> None:
    graph = tiny(1)
    cost = model.cost(graph)
    assert cost.kind == model.target.kind == "predicted"
    assert cost.cycles == pytest.approx(sum(k.cycles or 0 for k in cost.kernels))
    assert cost.seconds == pytest.approx(cost.cycles / TARGET.clock_hz)
    assert cost.interval is not None
    assert cost.interval[0] <= cost.cycles <= cost.interval[1]
    for kernel in cost.kernels:
        assert kernel.interval is not None
        assert kernel.cycles is not None
        assert kernel.interval[0] <= kernel.cycles <= kernel.interval[1]
    inside = [t for k in cost.kernels for t in k.tensors]
    assert sorted(inside) == sorted(t.name for n in graph.nodes for t in n.outputs)


def test_a_batch_equals_single_costs_and_remembers(model: CatBoostCostModel) -> None:
    graphs = [tiny(seed) for seed in (5, 6, 5)]
    batch = model.cost_many(graphs)
    fresh = catboost_model.CatBoostCostModel(model.target, model._trees, model.entry)
    assert batch == [fresh.cost(g) for g in graphs]

    class Refusing:
        def predict(self, *_: object, **__: object) -> None:
            raise AssertionError("evaluated again")

    model_again = catboost_model.CatBoostCostModel(model.target, Refusing(), model.entry)
    model_again._known.update(fresh._known)
    assert model_again.cost_many(graphs) == batch


def test_an_unknown_operator_is_never_zero(model: CatBoostCostModel) -> None:
    b = ModelBuilder([1, 3, 8, 8])
    y = b.op("MaxPool", b.conv(b.x, 3, 8), kernel_shape=[2, 2])
    cost = model.cost(static_view(from_model(b.build(y)), {}))
    conv, pool = cost.kernels
    assert conv.cycles is not None
    assert pool.cycles is None
    assert "never seen MaxPool" in pool.reason
    assert cost.unavailable == (pool,)
    assert not pool.covered
    assert cost.uncovered_share >= 0.5


def test_sizes_outside_the_training_data_are_flagged(model: CatBoostCostModel) -> None:
    b = ModelBuilder([1, 3, 8, 8])
    cost = model.cost(static_view(from_model(b.build(b.conv(b.x, 3, 200, 3, pads=1))), {}))
    (kernel,) = cost.kernels
    assert kernel.cycles is not None
    assert any(reason.startswith("out_channels 200 >") for reason in kernel.uncovered)
    assert not kernel.covered
    assert all(k.covered for k in model.cost(tiny(1)).kernels)


def test_coverage_survives_its_text_form(data: dataset.Dataset) -> None:
    coverage = Coverage.of(data.table)
    again = Coverage.from_dict(json.loads(json.dumps(coverage.to_dict())))
    assert again == coverage
    assert not any(again.gaps(data.table))
    baseline = Baseline.fit(data.table, data.cycles)
    assert Baseline.from_dict(baseline.to_dict()).ruling == baseline.ruling


def test_an_artefact_is_written_and_read_back(
    trained: training.Trained, data: dataset.Dataset, tmp_path: Path
) -> None:
    card = tmp_path / "toy.json"
    card.write_text(json.dumps(TARGET.to_dict()), encoding="utf-8")
    with pytest.raises(UsageError, match="target train"):
        catboost_model.load(card)
    training.write(trained, card)
    fields = json.loads(card.read_text(encoding="utf-8"))
    entry = fields.pop("cost_model")
    assert fields == TARGET.to_dict()
    assert entry["data_sha256"] == data.sha256
    assert (entry["networks"], entry["kernels"]) == (60, len(data.table))
    assert entry["backend"] == "toy"
    assert entry["label_kind"] == "estimate"
    assert entry["errors"]["all"]["count"] == 6
    assert entry["features"] == list(FEATURES)
    assert card.with_suffix(".cbm").stat().st_size < training.MAX_BYTES
    loaded = catboost_model.load(card)
    assert loaded.cost(tiny(3)) == trained.model.cost(tiny(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.cbm", "toy.json"]
    entry["format"] = 0
    card.write_text(json.dumps({**fields, "cost_model": entry}), encoding="utf-8")
    with pytest.raises(UsageError, match="another version"):
        catboost_model.load(card)


def test_training_is_deterministic_and_wants_enough_data(data: dataset.Dataset) -> None:
    few = data.select(lambda name: int(name.split("-")[1]) < 12)
    once = training.train(few, TARGET.to_dict(), SOURCE, QUICK).model
    again = training.train(few, TARGET.to_dict(), SOURCE, QUICK).model
    assert once.entry == again.entry
    assert once.cost(tiny(2)) == again.cost(tiny(2))
    with pytest.raises(UsageError, match="too few"):
        training.train(data.select(lambda name: name == "tiny-1"), TARGET.to_dict(), SOURCE, QUICK)


def test_features_are_finite_and_named(data: dataset.Dataset) -> None:
    baseline = Baseline.fit(data.table, data.cycles)
    bounds = baseline.bounds(data.table)
    matrix = feature_matrix(
        data.table, bounds, baseline.guess(data.table, bounds), ["Conv"], ["none"]
    )
    assert matrix.shape == (len(data.table), len(FEATURES))
    assert np.isfinite(matrix).all()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(
        sorted(
            {
                *sampling.TRAINING_FAMILIES,
                *sampling.RARE_FAMILIES.values(),
                *sampling.HELD_OUT_FAMILIES,
            }
        )
    ),
    st.integers(0, 100_000),
)
def test_sampled_networks_are_valid_and_reproducible(family: str, seed: int) -> None:
    graph = sampling.sample_network(family, seed)
    model = gs.export_onnx(graph)
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in inferred.graph.value_info
    }
    for node in graph.nodes:
        for tensor in node.outputs:
            assert shapes.get(tensor.name, tensor.shape) == tensor.shape
    again = gs.export_onnx(sampling.sample_network(family, seed))
    again.ir_version = 8
    assert again.SerializeToString() == model.SerializeToString()


def test_variants_of_a_model_differ_in_width() -> None:
    graph = tiny(4)
    seen = set()
    for name, make in sampling.variants("mine", graph, 8):
        assert name.startswith("like-mine-")
        variant = make()
        kernels = split_kernels(static_view(variant, {}))
        seen.add(tuple(k.out_channels for k in kernels))
        onnx.checker.check_model(_exported(variant), full_check=True)
    assert len(seen) > 1


def test_rounds_measure_the_whole_plan_once(tmp_path: Path) -> None:
    backend = ToyCostModel()
    done = active.measure_in_rounds(backend, tmp_path, tinies(30), 2, SOURCE)
    assert (done.measured, backend.calls) == (30, 30)
    assert len(dataset.read(tmp_path).names) == 30


def test_the_hardest_networks_come_first(model: CatBoostCostModel) -> None:
    def wide() -> Any:
        b = ModelBuilder([1, 3, 8, 8])
        return static_view(from_model(b.build(b.conv(b.x, 3, 300, 5, pads=2))), {})

    chosen = measuring.hardest([*tinies(3), ("wide-0", wide)], 1, model)
    assert [name for name, _ in chosen] == ["wide-0"]


def test_a_good_model_qualifies_and_a_bad_one_does_not(model: CatBoostCostModel) -> None:
    subjects = [Subject(f"t{s}", f"f{s % 2}", partial(tiny, s)) for s in range(2000, 2012)]
    result = qualify(model, ToyCostModel(), subjects, {"mape": 0.2, "kendall": 0.7})
    assert result.passed
    assert set(result.errors[PREDICTED]) == {"all", "f0", "f1"}
    assert result.errors[PREDICTED]["all"].mape < result.errors["MACs only"]["all"].mape
    assert all(abs(row.sum_error) < 1e-9 for row in result.rows)
    assert result.regions[0].share >= result.regions[-1].share
    strict = qualify(model, ToyCostModel(), subjects, {"mape": 1e-6, "kendall": 1.0})
    assert not strict.passed
    assert "mape is" in strict.shortfalls[0]
    failing = qualify(model, Stumbling(refuses="g"), subjects[:1], {})
    assert failing.failed == (("t2000", "Not today."),)


def test_accuracy_of_known_figures() -> None:
    found = accuracy(np.array([100.0, 200.0, 400.0]), np.array([110.0, 190.0, 400.0]))
    assert found.mape == pytest.approx((0.1 + 0.05) / 3)
    assert found.kendall == 1.0
    assert found.spearman == pytest.approx(1.0)
    assert found.within_5 == pytest.approx(2 / 3)
    assert found.within_10 == 1.0
    reverse = accuracy(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    assert reverse.kendall == -1.0
    assert accuracy(np.zeros(1), np.ones(1)).count == 0


def _exported(graph: Any) -> onnx.ModelProto:
    model: onnx.ModelProto = gs.export_onnx(graph)
    model.ir_version = 8
    return model
