"""One regression made of several: a boosted ensemble per group of operators, in one CatBoost model.

Costs of different kinds of operators follow different rules, and an ensemble shared by all of them
predicts rare kinds from kernels of common ones that happen to have the same size. So each group
is boosted on its own rows, and the ensembles are then joined: every tree gets one more split, on
the group's indicator, with zero leaves outside of the group. The result is an ordinary CatBoost
model, whose prediction is the sum of its trees, that is of the one group's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INSIDE = 0.5
"""Border of the indicator's split."""


def fit(
    matrix: NDArray[np.float32],
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    indicators: Mapping[int, Mapping[str, Any]],
) -> Any:
    """Boost each group on its own and join the trees.

    Args:
        matrix: features, [rows, features].
        target: what to predict.
        weight: of each row.
        indicators: columns of `matrix`, each 1 for the rows of one group, else 0; and options of
            `catboost.CatBoostRegressor` for that group. Trees are symmetric.

    Returns:
        ``catboost.CatBoost``.
    """
    from catboost import CatBoost, CatBoostRegressor

    parts: list[tuple[int, dict[str, Any] | None, float]] = []
    for column, options in indicators.items():
        rows = matrix[:, column] > _INSIDE
        if not rows.any():
            continue
        values = target[rows]
        if np.ptp(values) == 0.0 or np.ptp(matrix[rows], axis=0).max() == 0.0:
            parts.append((column, None, float(np.average(values, weights=weight[rows]))))
            continue
        trees = CatBoostRegressor(**options)
        trees.fit(matrix[rows], values, sample_weight=weight[rows])
        parts.append((column, _as_dict(trees), 0.0))
    joined = CatBoost()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "joined.json"
        path.write_text(json.dumps(_joined(parts, matrix.shape[1])), encoding="utf-8")
        joined.load_model(str(path), format="json")
    return joined


def _as_dict(trees: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trees.json"
        trees.save_model(str(path), format="json")
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return fields


def _joined(
    parts: Sequence[tuple[int, dict[str, Any] | None, float]], features: int
) -> dict[str, Any]:
    """A model in CatBoost's JSON form. Bit i of a leaf's number is the outcome of split i."""
    trees: list[tuple[list[tuple[int, float]], list[float]]] = []
    for column, part, constant in parts:
        gate = (column, _INSIDE)
        bias = constant
        if part is not None:
            scale, biases = part["scale_and_bias"]
            bias = biases[0]
            for tree in part["oblivious_trees"]:
                splits = [(s["float_feature_index"], s["border"]) for s in tree["splits"] or ()]
                leaves = [scale * value for value in tree["leaf_values"]]
                trees.append(([*splits, gate], [*[0.0] * len(leaves), *leaves]))
        trees.append(([gate], [0.0, bias]))
    borders: list[set[float]] = [set() for _ in range(features)]
    for splits, _ in trees:
        for feature, border in splits:
            borders[feature].add(border)
    ordered = [(f, b) for f, values in enumerate(borders) for b in sorted(values)]
    number = {split: i for i, split in enumerate(ordered)}
    return {
        "features_info": {
            "float_features": [
                {
                    "borders": sorted(values),
                    "feature_index": f,
                    "flat_feature_index": f,
                    "has_nans": False,
                    "nan_value_treatment": "AsIs",
                }
                for f, values in enumerate(borders)
            ]
        },
        "model_info": {},
        "oblivious_trees": [
            {
                "leaf_values": leaves,
                "splits": [
                    {
                        "border": border,
                        "float_feature_index": feature,
                        "split_index": number[feature, border],
                        "split_type": "FloatFeature",
                    }
                    for feature, border in splits
                ],
            }
            for splits, leaves in trees
        ],
        "scale_and_bias": [1, [0]],
    }
