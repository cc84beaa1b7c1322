"""Conformance checks any search strategy must meet; part of `onnxnas.testing`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxnas.problem import Genes, Problem
from onnxnas.strategy import Strategy, keys

Make = Callable[[Problem, int, Genes | None], Strategy]
"""A strategy's class: called with the problem, a seed and candidates to start with."""


def check_strategy(
    make: Make, problem: Problem, *, evaluations: int = 150, repeats: bool = False
) -> Genes:
    """Check everything the contract of `Strategy` asks for, on one problem.

    Args:
        make: the strategy's class.
        problem: small, so that the strategy comes to its end.
        evaluations: at most so many candidates are answered.
        repeats: the strategy may ask for the same candidate again and need not finish.

    Returns:
        Everything it asked for, for further checks.

    Raises:
        AssertionError: the strategy breaks a rule.
    """
    asked, ended = _walk(make, problem, evaluations, 0, None)
    name = make(problem, 0, None).name
    again, _ = _walk(make, problem, evaluations, 0, None)
    _require(np.array_equal(asked, again), f"{name}: the same seed asks for something else")
    _require(len(asked) > 0, f"{name}: asks for nothing at all")
    clash = np.flatnonzero(problem.conflicting(asked))
    _require(
        not len(clash),
        f"{name}: asks for choices that exclude each other: "
        f"{problem.candidate(asked[clash[0]]) if len(clash) else ''}",
    )
    if not repeats:
        _require(len(set(keys(asked))) == len(asked), f"{name}: asks for a candidate twice")
        _require(
            ended or len(asked) < problem.size,
            f"{name}: does not finish when there is nothing left to ask",
        )
    start = asked[-1:]
    warm, _ = _walk(make, problem, evaluations, 1, start)
    _require(
        bool((warm[: len(asked)] == start).all(axis=1).any()),
        f"{name}: never asks for the candidate it was given to start with",
    )
    return asked


def _walk(
    make: Make, problem: Problem, evaluations: int, seed: int, start: Genes | None
) -> tuple[Genes, bool]:
    """All that is asked for, and whether it came to an end."""
    strategy = make(problem, seed, start)
    asked = np.zeros((0, len(problem.choices)), dtype=np.intp)
    while len(asked) < evaluations:
        genes = strategy.ask()
        if not len(genes):
            _require(not len(strategy.ask()), f"{strategy.name}: goes on after it has finished")
            return asked, True
        _require(
            genes.ndim == 2 and genes.shape[1] == len(problem.choices),
            f"{strategy.name}: asks for an array of {genes.shape}, not of a gene per site",
        )
        inside = (genes >= 0).all() and (genes <= problem.choices).all()
        _require(bool(inside), f"{strategy.name}: asks for choices that do not exist")
        asked = np.concatenate([asked, genes])
        strategy.tell(genes, problem.evaluate(genes))
    return asked, False


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
