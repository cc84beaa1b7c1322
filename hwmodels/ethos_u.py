"""The built-in Arm Ethos-U targets: one card each, ``<name>.json``, and Vela behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxnas.cost import Target
from onnxnas.hwmodels.vela import VelaCostModel
from onnxnas.hwmodels.vela_compiler import default_cache_dir


def u55_128() -> VelaCostModel:
    """Ethos-U55, 128 MACs per cycle, everything but weights in shared SRAM."""
    return _model("ethos-u55-128")


def u55_256() -> VelaCostModel:
    """Ethos-U55, 256 MACs per cycle, everything but weights in shared SRAM."""
    return _model("ethos-u55-256")


def u65_256() -> VelaCostModel:
    """Ethos-U65, 256 MACs per cycle, DRAM with 384 KiB of SRAM as a cache."""
    return _model("ethos-u65-256")


def u65_512() -> VelaCostModel:
    """Ethos-U65, 512 MACs per cycle, everything but weights in shared SRAM."""
    return _model("ethos-u65-512")


def u85_512() -> VelaCostModel:
    """Ethos-U85, 512 MACs per cycle, DRAM with 512 KiB of SRAM as a cache."""
    return _model("ethos-u85-512")


def u85_2048() -> VelaCostModel:
    """Ethos-U85, 2048 MACs per cycle, DRAM with 512 KiB of SRAM as a cache."""
    return _model("ethos-u85-2048")


def card(name: str) -> Target:
    """The target a card describes."""
    path = Path(__file__).with_name(f"{name}.json")
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields.pop("cost_model", None)  # what was learned about it, see `catboost_model`
    fields["channel_multiples"] = tuple(fields["channel_multiples"])
    return Target(**fields)


def _model(name: str) -> VelaCostModel:
    return VelaCostModel(card(name), default_cache_dir())
