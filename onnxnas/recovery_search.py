"""Which choices that change the function to make: cheapest damage for each latency goal.

Costs come first: a choice that saves nothing on the target is never fitted. What remains is fitted
alone, judged alone on held-out rows, and combined by an integer program on the sums of savings and
divergences. Sums are only a proxy: the solutions for a ladder of goals are fitted again in order,
compiled whole and really judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from onnxnas.divergence import Divergence
from onnxnas.graph import static_view
from onnxnas.held_out import HeldOut
from onnxnas.materialize import apply_candidate
from onnxnas.pass_contract import Fitted, OutOfTime
from onnxnas.recover import Move, Recovery, values_only
from onnxnas.roundtrip import silenced
from onnxnas.screening import Screen
from onnxnas.search import AT_ONCE, MIN_GAIN, Evaluator, Progress, Trial
from onnxnas.sites import Candidate, SearchSpace

_ALONE_SHARE = 0.6
"""Of the time there is for fitting choices alone; the rest is for judging and combining them."""
LATE = "not judged before the time was up"
_STEP = 0.05
"""Between two goals of the ladder, as a share of the original's cycles."""


@dataclass(frozen=True)
class Single:
    """One choice alone.

    Attributes:
        saving: cycles it takes off the whole network.
        fitted: its weights.
        divergence: on held-out rows.
    """

    saving: float
    fitted: Fitted
    divergence: Divergence


@dataclass(frozen=True)
class Finalist:
    """A combination that was fitted in order, compiled whole and judged.

    Attributes:
        candidate: what was left of the goal's choices after those that could not be fitted.
        goal: share of the original's cycles that was to be saved.
        cost: of the whole rewritten network with its own weights.
        divergence: on held-out rows.
        proxy: sum of the single divergences.
        weights: what was fitted.
    """

    candidate: Candidate
    goal: float
    trial: Trial
    divergence: Divergence
    proxy: float
    weights: Mapping[Move, Fitted]


@dataclass
class RecoverySearch:
    """Searches the recovered choices of one model on one target.

    Attributes:
        evaluator: costs candidates.
        recovery: fits weights.
        held_out: judges candidates.
        singles: every choice that saves something and could be fitted.
        rejected: why the others are out.
        finalists: combinations that were really judged.
        alone: what each choice costs alone.
        deadline: by `time.monotonic`; nothing is started after it.
        screen: asked first; what it rules out is not costed.
    """

    evaluator: Evaluator
    recovery: Recovery
    held_out: HeldOut
    progress: Progress = field(default=lambda *_: None)
    singles: dict[Move, Single] = field(default_factory=dict)
    rejected: dict[Move, str] = field(default_factory=dict)
    finalists: list[Finalist] = field(default_factory=list)
    alone: dict[Move, Trial] = field(default_factory=dict)
    deadline: float | None = None
    screen: Screen | None = None

    @property
    def space(self) -> SearchSpace:
        """Of the evaluator."""
        return self.evaluator.space

    @property
    def baseline(self) -> Trial:
        """The unchanged model."""
        return self.evaluator.evaluate([Candidate()])[0]

    def judge_alone(self) -> None:
        """Cost every recovered choice, fit and judge those that save something, the most first."""
        savings = self._savings()
        most: dict[str, float] = {}
        for (site_id, _), saving in savings.items():
            most[site_id] = max(saving, most.get(site_id, 0.0))
        sites = sorted(most, key=lambda site_id: -most[site_id])
        found, refused = self._alone([m for s in sites for m in savings if m[0] == s])
        self.rejected.update(refused)
        done = 0
        for site_id in sites:
            moves = [move for move in savings if move[0] == site_id and move in found]
            if self._late():
                self.rejected.update(dict.fromkeys(moves, LATE))
                continue
            self.progress("judging each choice alone", done, len(found))
            students = [
                apply_candidate(
                    self.evaluator.graph,
                    self.space,
                    Candidate.of(dict([move])),
                    self.evaluator.passes,
                    {move: found[move].values},
                )
                for move in moves
            ]
            try:
                judged = self.held_out.divergences(students)
            except OutOfTime:
                self.rejected.update(dict.fromkeys(moves, LATE))
                continue
            for move, divergence in zip(moves, judged, strict=True):
                if np.isfinite(divergence.value):
                    self.singles[move] = Single(savings[move], found[move], divergence)
                else:
                    self.rejected[move] = "with it the network's outputs are not finite"
            done += len(moves)

    def _alone(self, moves: Sequence[Move]) -> tuple[dict[Move, Fitted], dict[Move, str]]:
        """Fit choices in a share of the time that is left."""
        if self.deadline is None:
            return self.recovery.alone(moves)
        now = time.monotonic()
        self.recovery.deadline = now + _ALONE_SHARE * (self.deadline - now)
        try:
            return self.recovery.alone(moves)
        finally:
            self.recovery.deadline = self.deadline

    def _savings(self) -> dict[Move, float]:
        moves = [
            (site.id, choice.label)
            for site in self.space
            for choice in site.choices
            if choice.exactness == "recovered"
        ]
        savings: dict[Move, float] = {}
        screen, original = self.screen, self.evaluator.view(Candidate())
        rule_out = None if screen is None else lambda _, views: screen.reasons(original, views)
        for start in range(0, len(moves), AT_ONCE):
            self.progress("costing each choice alone", start, len(moves))
            some = moves[start : start + AT_ONCE]
            if self._late():
                self.rejected.update(dict.fromkeys(some, "not costed before the time was up"))
                continue
            trials = self.evaluator.evaluate(
                [Candidate.of(dict([move])) for move in some], rule_out
            )
            for move, trial in zip(some, trials, strict=True):
                self.alone[move] = trial
                saving = self.baseline.cycles - trial.cycles
                if trial.cost is None:
                    self.rejected[move] = trial.reason
                elif saving <= MIN_GAIN * self.baseline.cycles:
                    self.rejected[move] = (
                        "costs cycles" if saving < 0 else f"saves less than {MIN_GAIN:.1%}"
                    )
                else:
                    savings[move] = saving
        return savings

    def climb(self, limit: float, damage: Callable[[Finalist], float]) -> None:
        """Look for the fastest candidate whose damage stays within a limit; see `best`.

        Goals rise in steps of 5 % until two in a row do too much damage, then one between the
        last good and the first bad one is tried. All that were looked at are in `finalists`.

        Args:
            limit: of the damage.
            damage: of a finalist, e.g. its loss in agreement.
        """
        tried: dict[float, bool] = {}
        step, failures = 1, 0
        while failures < 2 and not self._late():
            outcome = self._try(step * _STEP, limit, damage)
            if outcome is None:
                break
            tried[step * _STEP] = outcome
            failures = 0 if outcome else failures + 1
            step += 1
        good = max((g for g, ok in tried.items() if ok), default=0.0)
        bad = min((g for g, ok in tried.items() if not ok and g > good), default=None)
        if bad is not None and not self._late():
            self._try((good + bad) / 2, limit, damage)

    def best(self, limit: float, damage: Callable[[Finalist], float]) -> Finalist | None:
        """The fastest finalist so far whose damage stays within a limit; None if none does."""
        fit = [f for f in self.finalists if damage(f) <= limit and f.candidate.decisions]
        return min(fit, key=lambda f: f.trial.cycles, default=None)

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _try(self, goal: float, limit: float, damage: Callable[[Finalist], float]) -> bool | None:
        """Whether the finalist of a goal is within the limit.

        Returns:
            None where no choices reach the goal, or the time was up before it was known.
        """
        candidate = self.solve(goal)
        if candidate is None:
            return None
        known = [f for f in self.finalists if f.candidate == candidate]
        try:
            finalist = known[0] if known else self.finalist(goal, candidate)
        except OutOfTime:
            return None
        if not known:
            self.finalists.append(finalist)
        return damage(finalist) <= limit

    def solve(self, goal: float) -> Candidate | None:
        """The choices with the least summed divergence that save a share of the cycles."""
        savings = {m: s.saving / self.baseline.cycles for m, s in self.singles.items()}
        damage = {m: max(0.0, s.divergence.value) for m, s in self.singles.items()}
        return cheapest(self.space, savings, damage, goal)

    def finalist(self, goal: float, candidate: Candidate) -> Finalist:
        """Fit a candidate's choices in order, cost it with those weights, and judge it."""
        weights, refused = self.recovery.in_order(candidate)
        for site_id, label in refused:
            self.rejected.setdefault((site_id, label), refused[site_id, label])
            candidate = candidate.with_choice(site_id, "keep")
        values = values_only(weights)
        applied = apply_candidate(
            self.evaluator.graph, self.space, candidate, self.evaluator.passes, values
        )
        proxy = sum(
            self.singles[m].divergence.value for m in candidate.decisions if m in self.singles
        )
        view = static_view(applied.graph, self.evaluator.input_shapes)
        trial = Trial(candidate, self.evaluator.cost_model.cost(view))
        divergence = self.held_out.divergence(applied)
        return Finalist(candidate, goal, trial, divergence, proxy, weights)


def cheapest(
    space: SearchSpace, savings: Mapping[Move, float], damage: Mapping[Move, float], goal: float
) -> Candidate | None:
    """Minimise the summed damage of one choice per site under a sum of savings, exactly.

    Args:
        space: says which sites exclude each other.
        savings: of each move, in the unit of `goal`.
        damage: of each move, not negative.
        goal: at least so much is to be saved.

    Returns:
        None where all moves together do not save that much.
    """
    moves = sorted(savings)
    if not moves:
        return None
    rows = [[savings[m] for m in moves]]
    lower, upper = [goal], [np.inf]
    for clique in exclusive_moves(space, moves):
        rows.append([float(m in clique) for m in moves])
        lower.append(0.0)
        upper.append(1.0)
    # The tiny price on every move keeps those out that neither save nor harm.
    prices = np.array([damage[m] for m in moves]) + 1e-9
    with silenced():  # the solver prints lines of its own
        solution = milp(
            prices,
            constraints=LinearConstraint(np.array(rows), lower, upper),
            integrality=np.ones(len(moves)),
            bounds=Bounds(0, 1),
        )
    if solution.x is None:
        return None
    return Candidate.of({m[0]: m[1] for m, x in zip(moves, solution.x, strict=True) if x > 0.5})


def exclusive_moves(space: SearchSpace, moves: Sequence[Move]) -> list[frozenset[Move]]:
    """Sets of moves of which at most one can be made: of one site, or of a claim."""
    by_claim: dict[str, set[Move]] = {}
    for move in moves:
        site = space.site(move[0])
        for claim in (f"site:{site.id}", *site.claims):
            by_claim.setdefault(claim, set()).add(move)
    return list({frozenset(found) for found in by_claim.values() if len(found) > 1})
