"""What became of every choice, and why: the rows of the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnxnas.recovery_search import RecoverySearch
from onnxnas.search import LedgerRow, Status
from onnxnas.sites import Candidate, SearchSpace, Site


def unfitted_rows(space: SearchSpace, reason: str) -> Iterator[LedgerRow]:
    """Of choices whose weights were not fitted, all for one reason."""
    for site in space:
        for choice in site.choices:
            if choice.exactness == "recovered":
                yield _row(site, choice.label, "not chosen", reason, None)


def exact_rows(
    alone: Sequence[LedgerRow],
    beside: Sequence[LedgerRow],
    space: SearchSpace,
    chosen: Candidate,
) -> Iterator[LedgerRow]:
    """Of choices that change nothing.

    Args:
        alone: rows of the search on the original.
        beside: rows of the search beside what was chosen; they count where there are any.
        space: all sites.
        chosen: the result.
    """
    decided = dict(chosen.decisions)
    known = {(row.pass_name, row.tensor, row.choice): row for row in beside}
    for row in alone:
        site = space.site(f"{row.pass_name}@{row.tensor}")
        row = known.get((row.pass_name, row.tensor, row.choice), row)
        if (decided.get(site.id) == row.choice) == (row.status == "applied"):
            yield row
        elif decided.get(site.id) == row.choice:
            yield replace(row, status="applied", reason=site.choice(row.choice).note)
        else:
            rivals = [decided[site.id]] if site.id in decided else space.conflicts(site, chosen)
            reason = f"{rivals[0]} is better here" if rivals else "does not pay beside the others"
            yield replace(row, status="not chosen", reason=reason)


def recovered_rows(search: RecoverySearch, chosen: Candidate) -> Iterator[LedgerRow]:
    """Of choices whose weights are fitted."""
    decided = dict(chosen.decisions)
    for site in search.space:
        for choice in site.choices:
            if choice.exactness != "recovered":
                continue
            move = (site.id, choice.label)
            trial, single = search.alone.get(move), search.singles.get(move)
            delta = None
            if trial is not None and trial.cost is not None:
                delta = trial.cycles - search.start.cycles
            harm = "" if single is None else f"divergence {single.divergence.value:.4f} alone"
            if decided.get(site.id) == choice.label:
                yield _row(site, choice.label, "applied", f"{choice.note}; {harm}", delta)
            elif trial is None:
                reason = search.rejected.get(move, "not costed before the search was stopped")
                yield _row(site, choice.label, "not chosen", reason, delta)
            elif trial.cost is None:
                status: Status = "not chosen" if trial.ruled_out else "impossible"
                yield _row(site, choice.label, status, trial.reason, delta)
            elif move in search.rejected:
                saves = delta is not None and -delta > 0
                status = "rejected" if saves and single is None else "not chosen"
                yield _row(site, choice.label, status, search.rejected[move], delta)
            elif site.id in decided:
                reason = f"{decided[site.id]} is better here ({harm})"
                yield _row(site, choice.label, "not chosen", reason, delta)
            else:
                reason = f"others save as much for less ({harm})"
                yield _row(site, choice.label, "not chosen", reason, delta)


def _row(site: Site, label: str, status: Status, reason: str, delta: float | None) -> LedgerRow:
    return LedgerRow(site.pass_name, site.tensor, label, status, reason, "recovered", delta)
