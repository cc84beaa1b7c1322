"""The test models themselves are valid and run."""

from __future__ import annotations

import models
import oracle


def test_an_inverted_bottleneck_runs_and_equals_itself() -> None:
    b = models.ModelBuilder([1, 8, 6, 6])
    model = b.build(b.ibn(b.x, 8, 24, 8))
    assert oracle.run(model, oracle.random_feeds(model))
    oracle.assert_same_outputs(model, model)
