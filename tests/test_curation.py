"""Channel counts that suit a target, read off its cost curve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import TARGET, ToyCostModel

from onnxnas.cost import Cost, KernelCost
from onnxnas.hwmodels.curation import ChannelCurve, write_steps
from onnxnas.plugins import load_predictor, load_target


def test_channel_steps_are_read_off_the_cost_curve(tmp_path: Path) -> None:
    curve = ChannelCurve.of(ToyCostModel())
    assert curve.steps == (8,)
    assert (curve.widths[0], curve.cost[-1]) == (1, 1.0)
    card = tmp_path / "toy.json"
    card.write_text(json.dumps(TARGET.to_dict()), encoding="utf-8")
    assert write_steps(ToyCostModel(), card) == (8,)
    written = json.loads(card.read_text(encoding="utf-8"))
    assert written == {**TARGET.to_dict(), "channel_multiples": [8]}


def test_a_curve_without_steps_gives_none_and_leaves_the_card_alone(tmp_path: Path) -> None:
    assert ChannelCurve(np.arange(1, 98), np.arange(1, 98) / 97).steps == ()

    class Smooth(ToyCostModel):
        def cost_many(self, graphs: Any) -> list[Cost]:
            return [replace(self.cost(g), kernels=tuple(smooth(g))) for g in graphs]

    def smooth(graph: Any) -> list[KernelCost]:
        return [
            KernelCost(n.outputs[0].name, n.op, (n.outputs[0].name,), float(n.outputs[0].shape[1]))
            for n in graph.nodes
        ]

    card = tmp_path / "toy.json"
    card.write_text("{}", encoding="utf-8")
    assert write_steps(Smooth(), card) == ()
    assert card.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("name", ["ethos-u55-128", "ethos-u85-512"])
def test_the_widths_passes_round_to_are_those_of_the_learned_curve(name: str) -> None:
    learned = load_predictor(name)
    assert learned is not None
    assert load_target(name).target.channel_multiples == ChannelCurve.of(learned).steps
