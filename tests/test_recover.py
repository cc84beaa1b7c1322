"""Fitting stops when the time is up, keeps what it has, and never holds all rows."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from fakes import TARGET
from fitting import recovery

from onnxnas import recover
from onnxnas.block_library import BlockLibrary
from onnxnas.calibration import Calibration
from onnxnas.fit_rows import FitRows
from onnxnas.graph import from_model
from onnxnas.held_out import HeldOut
from onnxnas.pass_contract import OutOfTime, Why
from onnxnas.passes.fuse_ibn import FuseIbn
from onnxnas.passes.resize_ibn import ResizeIbn
from onnxnas.recover import OUT_OF_TIME, Recovery
from onnxnas.sites import Candidate, SearchSpace


def blocks(count: int, size: int = 8) -> onnx.ModelProto:
    b = models.ModelBuilder([1, 6, size, size])
    y = b.x
    for _ in range(count):
        y = b.ibn(y, 6, 32, 6)
    return b.build(y)


def moves(found: Recovery) -> list[tuple[str, str]]:
    return [(site.id, choice.label) for site in found.space for choice in site.choices]


def test_a_fit_under_way_is_given_up_when_the_time_is_up(tmp_path: Path) -> None:
    found = recovery(tmp_path, blocks(2), ResizeIbn(steps=10**9))
    found.deadline = time.monotonic() + 1.0
    start = time.monotonic()
    fits, refused = found.alone(moves(found))
    assert time.monotonic() - start < 4.0
    assert not fits
    assert refused == dict.fromkeys(moves(found), OUT_OF_TIME)


def test_choices_in_order_are_not_half_fitted(tmp_path: Path) -> None:
    found = recovery(tmp_path, blocks(2), ResizeIbn(steps=0))
    candidate = Candidate.of({site.id: "to-24" for site in found.space})
    fits, _ = found.in_order(candidate)
    assert len(fits) == 2
    found.deadline = time.monotonic() - 1.0
    with pytest.raises(OutOfTime):
        found.in_order(Candidate.of({site.id: "to-16" for site in found.space}))
    kept, refused = found.alone(list(fits))
    assert (set(kept), refused) == (set(fits), {})  # what is on disk takes no time


def test_in_order_the_first_choice_is_fitted_further(tmp_path: Path) -> None:
    """Nothing is before it, but what may be delivered gets more steps than what is only judged."""
    found = recovery(tmp_path, blocks(1), FuseIbn(steps=40, windows=2000))
    (site,) = found.space
    move = site.id, site.choices[0].label
    alone, in_order = (
        fits[move] for fits, _ in (found.alone([move]), found.in_order(Candidate.of(dict([move]))))
    )
    assert in_order.error < 0.95 * alone.error


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not copied here")
def test_workers_fill_the_library_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = [
        Candidate.of({site: label for site, _ in moves(recovery(tmp_path, blocks(2), ResizeIbn()))})
        for label in ("to-24", "to-16")
    ]
    one, two = (recovery(tmp_path, blocks(2), ResizeIbn(steps=0)) for _ in range(2))
    one.library, two.library = (BlockLibrary(tmp_path / name) for name in ("one", "two"))
    expected = [one.alone(moves(one))[0], *(one.in_order(c)[0] for c in candidates)]
    two.workers = 2
    two.ahead(moves(two))
    assert len([*(tmp_path / "two").iterdir()]) == len(moves(two))
    two.ahead((), candidates)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {
        p.name for p in (tmp_path / "two").iterdir()
    }
    monkeypatch.setattr(ResizeIbn, "recover", None)  # nothing is fitted again
    found = [two.alone(moves(two))[0], *(two.in_order(c)[0] for c in candidates)]
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for move, fit in a.items():
            assert all(np.array_equal(fit.values[n], b[move].values[n]) for n in fit.values)
    two.deadline = time.monotonic() - 1.0
    two.library = BlockLibrary(tmp_path / "three")
    with pytest.raises(OutOfTime):
        two.ahead(moves(two))
    two.library = BlockLibrary(None)
    two.ahead(moves(two))  # with nowhere to keep them there is nothing to do


def test_a_fit_is_not_taken_for_one_behind_other_weights(tmp_path: Path) -> None:
    """What comes before is known by how it was fitted, not only by its name."""

    def last(steps: int) -> Any:
        found = recovery(tmp_path, blocks(2), ResizeIbn(steps=0))
        first, second = found.space
        fused = next(iter(FuseIbn(steps=steps).find_sites(found.graph, TARGET, Why(""))))
        found.passes = {**found.passes, "fuse-ibn": FuseIbn(steps=steps)}
        found.space = SearchSpace((*found.space, fused))
        candidate = Candidate.of({fused.id: fused.choices[0].label, second.id: "to-24"})
        assert first.tensor == fused.tensor
        fits, refused = found.in_order(candidate)
        assert not refused
        return fits[second.id, "to-24"].error

    ridge = last(0)
    assert last(60) != ridge
    assert last(0) == ridge


def test_judging_stops_too(tmp_path: Path) -> None:
    found = recovery(tmp_path, blocks(1), ResizeIbn(steps=0))
    judge = HeldOut.of(found.graph, found.rows)
    judge.tick = found.tick
    found.deadline = time.monotonic() - 1.0
    with pytest.raises(OutOfTime):
        judge.divergence_of(found.graph)


def test_rows_are_never_all_in_memory(tmp_path: Path) -> None:
    count, shape = 2500, (6, 32, 32)

    def read(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        for index in indices:
            rng = np.random.default_rng(index)
            yield {"x": rng.standard_normal(shape, np.float32)}

    few = np.stack([row["x"] for row in read(range(60))])
    found = recovery(tmp_path, blocks(1, 32), ResizeIbn(steps=5, windows=6000), rows=few)
    tracemalloc.start()
    try:
        found.rows = FitRows.of(Calibration("rows", tuple(range(count)), 1, (), read))
        fits, _ = found.alone(moves(found)[:1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fits
    assert len(found.rows) == count
    assert peak < 0.5 * count * few[0].nbytes, f"{peak / 2**20:.1f} MiB"


def test_pictures_in_colour_are_read_mirrored_too() -> None:
    pictures = np.random.default_rng(0).standard_normal((60, 3, 8, 9)).astype(np.float32)

    def rows_of(values: Any) -> FitRows:
        def read(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
            return iter([{"x": values[i]} for i in indices])

        return FitRows.of(Calibration("rows", tuple(range(len(values))), 1, (), read))

    b = models.ModelBuilder([1, 3, 8, 9])
    rows = rows_of(pictures)
    assert rows.mirrored == ("x", 3)
    read = list(rows.run(from_model(b.build(b.op("Relu", b.x))), ["x"]))
    fitted = [row for row, role in enumerate(rows.roles) if role == "fit"]
    assert len(read) == rows.reads == 60 - rows.roles.count("judge") + len(fitted)
    turned = {row - 60: values["x"] for row, _, values in read if row >= 60}
    assert sorted(turned) == fitted  # no row to tune or judge by among them
    for row, values in turned.items():
        np.testing.assert_array_equal(values[0], pictures[row, :, :, ::-1])
    assert rows_of(pictures.transpose(0, 2, 3, 1).copy()).mirrored == ("x", 2)
    for other in (pictures[:, :1], pictures[:, 0], np.zeros((60, 3, 4, 3), np.float32)):
        assert rows_of(other).mirrored is None
    assert len(list(rows.fitted(7))) == 7


def test_a_pass_that_was_changed_is_not_handed_its_old_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recovery(tmp_path, blocks(1), ResizeIbn(steps=0))
    (site,) = found.space
    keys = [found._key(site, choice, "") for choice in site.choices]
    assert len(set(keys)) == len(keys)
    assert found._key(site, site.choices[0], "") == keys[0]
    monkeypatch.setattr(recover, "code_digest", lambda pass_: "another")
    assert found._key(site, site.choices[0], "") not in keys
