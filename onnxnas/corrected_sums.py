"""Sums of what single choices harm, corrected by what combinations of them were found to harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.optimize import nnls

from onnxnas.problem import Problem
from onnxnas.sites import Candidate

_PULL = 0.3
"""Towards the scale of all choices, as a share of the harm of the most harmful one."""


def corrected(problem: Problem, found: Mapping[Candidate, float]) -> Problem:
    """Damages of single choices, scaled so that their sums are what was really found.

    Least squares over the combinations, each scale not negative and pulled to the scale that suits
    all choices together.

    Args:
        found: combination -> its damage, by whatever measure.
    """
    if not found:
        return problem
    genes = problem.genes(list(found))
    aims = np.array(list(found.values())).clip(0.0)
    single = np.stack([d[genes[:, i]] for i, d in enumerate(problem.damage)], axis=1)
    total = single.sum(1)
    if not total.any():
        return problem
    common = float(aims @ total / (total @ total))
    pull = _PULL * float(np.sqrt((single**2).sum(0).max()))
    rows = np.vstack([single, pull * np.eye(single.shape[1])])
    scales, _ = nnls(rows, np.concatenate([aims, np.full(single.shape[1], pull * common)]))
    damage = tuple(d * s for d, s in zip(problem.damage, scales, strict=True))
    return replace(problem, damage=tuple(np.where(np.isnan(d), np.inf, d) for d in damage))
