"""Costs by look-up: how fast, how close to fresh predictions, and how much a table takes to build.

    python benchmarks/cost_table.py MODEL.onnx --target ethos-u55-128 --candidates 200

Prints one row of a Markdown table per target. Candidates are random: 1 to 20 sites, no two that
share a claim, any choice of each. Times are of this process alone, on one core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from onnxnas.cost_table import CostTable
from onnxnas.hwmodels.ethos_u import card
from onnxnas.hwmodels.vela import VelaCostModel
from onnxnas.prepare import Prepared, prepare
from onnxnas.rewriter import SiteGone
from onnxnas.search import Evaluator
from onnxnas.sites import Candidate

HEAD = (
    "| target | sites, choices | networks, s to build | candidates/s | s to compile one | times "
    "faster | cycles: mean, 95 %, largest error | additive | peak memory | weights |"
)
LOOK_UPS = 200_000
COMPILES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(HEAD + "\n" + "|---" * 10 + "|", flush=True)
    for target in options.target:
        print(row(options.model, target, options.candidates, options.seed), flush=True)


def row(model: str, target: str, count: int, seed: int) -> str:
    prepared = prepare(model, target)
    learned = prepared.cost_model.predictor()
    assert learned is not None
    begin = time.process_time()
    p = prepared
    evaluator = Evaluator(p.graph, p.space, p.passes, learned, p.input_shapes)
    table = CostTable.build(p.graph, p.space, evaluator.view, learned)
    built = time.process_time() - begin
    rng = np.random.default_rng(seed)
    sizes = [len(site.choices) + 1 for site in table.sites]
    genes = np.stack([rng.integers(0, size, LOOK_UPS) for size in sizes], axis=1)
    table.figures(genes[:1])
    begin = time.process_time()
    table.figures(genes)
    speed = LOOK_UPS / (time.process_time() - begin)
    errors, additive, views = [], [], []
    plain = CostTable(
        table.sites,
        tuple(f for f in table.factors if len(f.sites) < 2),
        table.kind,
        table.peak,
    )
    while len(errors) < count:
        candidate = random_candidate(prepared, rng)
        if any(gone <= set(candidate.decisions) for gone in table.impossible):
            continue
        try:
            view = evaluator.view(candidate)
        except SiteGone:
            continue
        cost = learned.cost(view)
        truth = np.array([cost.cycles, cost.peak_activation_bytes, cost.weight_bytes])
        views.append(view)
        del views[COMPILES:]
        at = table.genes([candidate])
        errors.append(np.abs(table.figures(at)[0, :3] / truth - 1))
        additive.append(abs(plain.figures(at)[0, 0] / truth[0] - 1))
    compiler = VelaCostModel(card(target), None, 1)
    begin = time.monotonic()
    for view in views:
        compiler.cost(view)
    compiled = (time.monotonic() - begin) / len(views)
    off = np.array(errors)
    choices = sum(len(site.choices) for site in table.sites)
    cells = (
        target,
        f"{len(table.sites)}, {choices}",
        f"{table.networks}, {built:.0f}",
        f"{speed:,.0f}",
        f"{compiled:.1f}",
        f"{compiled * speed:,.0f}",
        f"{off[:, 0].mean():.3%}, {np.quantile(off[:, 0], 0.95):.3%}, {off[:, 0].max():.2%}",
        f"{np.mean(additive):.2%}, {np.max(additive):.1%}",
        f"{off[:, 1].mean():.3%}, {off[:, 1].max():.2%}",
        f"{off[:, 2].mean():.3%}",
    )
    return f"| {' | '.join(cells)} |"


def random_candidate(prepared: Prepared, rng: np.random.Generator) -> Candidate:
    space, most = prepared.space, int(rng.integers(1, 21))
    decisions: dict[str, str] = {}
    claims: frozenset[str] = frozenset()
    for i in rng.permutation(len(space)):
        site = space.sites[i]
        if len(decisions) < most and not site.claims & claims:
            decisions[site.id] = site.choices[rng.integers(len(site.choices))].label
            claims |= site.claims
    return Candidate.of(decisions)


if __name__ == "__main__":
    main()
