"""Fronts against definitions written out, by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from onnxnas import front
from onnxnas.front import Archive, hypervolume, named, pareto


def beaten(rows: np.ndarray, i: int) -> bool:
    """By the book: another row is nowhere larger and somewhere smaller, or equal and earlier."""
    return any(
        (rows[j] <= rows[i]).all() and ((rows[j] < rows[i]).any() or j < i)
        for j in range(len(rows))
        if j != i
    )


@pytest.mark.parametrize("columns", [(0,), (0, 4), (4, 0, 1)])
def test_the_front_is_what_nothing_beats(columns: tuple[int, ...]) -> None:
    figures = np.random.default_rng(3).integers(0, 8, (200, 5)).astype(float)
    rows = figures[:, columns]
    expected = [not beaten(rows, i) for i in range(len(rows))]
    assert pareto(figures, columns).tolist() == expected
    assert 1 <= sum(expected) < len(rows)


def test_impossible_candidates_are_on_no_front() -> None:
    figures = np.array([[1, 0, 0, 0, np.nan], [np.inf] * 5, [2, 0, 0, 0, 1]])
    assert pareto(figures, (0, 4)).tolist() == [False, False, True]
    assert pareto(figures[:0], (0, 4)).tolist() == []


def staircase(cycles: list[float]) -> np.ndarray:
    figures = np.zeros((len(cycles), 5))
    figures[:, 0], figures[:, 4] = cycles, -np.array(cycles)
    return figures


def test_names_spread_evenly_from_the_mildest_to_the_furthest() -> None:
    cycles = [100.0, 99.0, 98.0, 76.0, 74.9, 60.0, 51.0, 30.0, 26.0, 1.0, 0.0]
    found = named(staircase(cycles), (0, 4))
    assert {name: cycles[row] for name, row in found.items()} == {
        "A": 100.0, "B": 74.9, "C": 51.0, "D": 26.0, "E": 0.0
    }  # fmt: skip


def test_names_do_not_depend_on_the_order_and_skip_what_is_beaten() -> None:
    rng = np.random.default_rng(0)
    figures = np.concatenate([staircase(list(rng.random(40))), np.ones((3, 5))])
    base = {name: tuple(figures[row]) for name, row in named(figures, (0, 4)).items()}
    mixed = figures[rng.permutation(len(figures))]
    assert {name: tuple(mixed[row]) for name, row in named(mixed, (0, 4)).items()} == base
    assert list(base) == list("ABCDE")
    assert len(set(base.values())) == 5
    assert (1.0,) * 5 not in base.values()


def test_the_chosen_one_always_has_a_name() -> None:
    cycles = [100.0, 99.0, 98.0, 76.0, 74.9, 60.0, 51.0, 30.0, 26.0, 1.0, 0.0]
    for row in range(len(cycles)):
        found = named(staircase(cycles), (0, 4), row)
        assert row in found.values()
        assert {0, len(cycles) - 1} <= set(found.values())
        assert len(set(found.values())) == len(found) == 5
        assert [cycles[at] for at in found.values()] == sorted(
            (cycles[at] for at in found.values()), reverse=True
        )
    assert named(staircase(cycles), (0, 4), 5) == {"A": 0, "B": 4, "C": 5, "D": 8, "E": 10}
    beaten = np.concatenate([staircase([3.0, 1.0]), np.full((1, 5), 2.0)])
    assert named(beaten, (0, 4), 2) == {"A": 0, "B": 2, "C": 1}


def test_a_short_front_names_what_there_is() -> None:
    assert named(staircase([3.0, 1.0]), (0, 4)) == {"A": 0, "B": 1}
    assert named(staircase([]), (0, 4)) == {}
    assert len(named(staircase([1.0, 1.0, 1.0]), (0, 4))) == 1


def test_hypervolume_counts_every_dominated_cell_once() -> None:
    rng = np.random.default_rng(1)
    for axes in (1, 2, 3):
        points = rng.integers(0, 6, (12, axes)).astype(float)
        cells = np.stack(np.meshgrid(*[np.arange(5)] * axes), axis=-1).reshape(-1, axes)
        covered = (points[:, None] <= cells[None]).all(axis=2).any(axis=0).sum()
        assert hypervolume(points, [5.0] * axes) == covered > 0
    assert hypervolume(np.zeros((0, 2)), [1, 1]) == 0


def test_an_archive_holds_the_front_of_all_it_saw() -> None:
    rng = np.random.default_rng(2)
    figures = rng.integers(0, 30, (300, 5)).astype(float)
    genes = np.arange(300)[:, None]
    archive = Archive(1, (0, 4))
    for start in range(0, 300, 7):
        archive.add(genes[start : start + 7], figures[start : start + 7])
    whole = np.flatnonzero(pareto(figures, (0, 4)))
    assert sorted(map(tuple, archive.figures[:, [0, 4]])) == sorted(
        map(tuple, figures[whole][:, [0, 4]])
    )
    np.testing.assert_array_equal(figures[archive.genes[:, 0]], archive.figures)
    assert (np.diff(archive.figures[:, 0]) > 0).all()


def test_an_archive_never_holds_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "LARGEST", 10)
    archive = Archive(1, (0, 4))
    for cycles in np.random.default_rng(4).random((20, 30)):
        archive.add(np.zeros((30, 1), dtype=np.intp), staircase(list(cycles)))
        assert len(archive.genes) == len(archive.figures) == 10
