"""Weights for the choices that change the function, fitted on the user's unlabelled inputs.

Every choice is first fitted alone, in the original: one tapped run over the rows serves all sites,
and what was found is kept on disk. A candidate's choices are then fitted again one after another,
in execution order, each on the inputs it will really see and towards the original's outputs, so
that later blocks repair what earlier ones changed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxnas.block_library import BlockLibrary, code_digest
from onnxnas.channel_fit import as_built, same_layers, with_layers
from onnxnas.fit_rows import FitRows
from onnxnas.forks import run_ahead
from onnxnas.materialize import Weights, apply_candidate
from onnxnas.pass_contract import Fitted, NotRecoverable, OutOfTime, Pass
from onnxnas.rewriter import SiteGone
from onnxnas.samples import (
    Samples,
    Sampling,
    Targets,
    read_samples,
    read_targets,
)
from onnxnas.sites import Candidate, Choice, SearchSpace, Site
from onnxnas.version import __version__

OUT_OF_TIME = "not fitted before the time was up"

_CHUNK_BYTES = 1 << 29
"""Sums and samples held at a time while all sites are fitted alone."""

Move = tuple[str, str]
"""(site id, choice label)."""

Progress = Callable[[str, int, int], None]


@dataclass
class Recovery:
    """Fits the choices of one model on one set of rows.

    Attributes:
        graph: the normalised original; is not changed.
        model_digest: of its weights and structure.
        rows: to fit on and to judge by.
        library: keeps what is found.
        seed: of the sampled positions.
        deadline: by `time.monotonic`; nothing is fitted after it.
        workers: processes that fit side by side; what is found does not depend on it. For more
            than one the matrix library should have one thread (``OPENBLAS_NUM_THREADS=1`` before
            numpy is loaded), else they wait for each other.
    """

    graph: Any
    model_digest: str
    space: SearchSpace
    passes: Mapping[str, Pass]
    rows: FitRows
    library: BlockLibrary
    seed: int = 0
    progress: Progress = field(default=lambda *_: None)
    deadline: float | None = None
    workers: int = 1

    def ahead(self, moves: Sequence[Move], candidates: Sequence[Candidate] = ()) -> None:
        """Fit choices alone, or candidates in order, side by side, so that the library has them.

        Does nothing without a library, where there is one worker, or nothing to share out.

        Raises:
            OutOfTime: the deadline has passed.
        """
        folder = self.library.folder
        if folder is None or self.workers < 2:
            return
        quiet = replace(self, progress=lambda *_: None)
        lacking = [m for m in moves if self.library.get(self._alone_key(m)) is None]
        sites = list(dict.fromkeys(site_id for site_id, _ in lacking))  # their choices share work
        shares = [{*sites[i :: self.workers]} for i in range(self.workers)]
        jobs: list[Callable[[], object]] = [
            partial(quiet.alone, [m for m in lacking if m[0] in share]) for share in shares if share
        ]
        jobs += [partial(quiet.in_order, candidate) for candidate in candidates]
        before = _count(folder)

        def waiting() -> None:
            self.tick()
            found = _count(folder) - before
            self.progress(f"fitting in {len(jobs)} processes", found, max(1, found, len(lacking)))

        run_ahead(jobs, waiting)

    def alone(self, moves: Sequence[Move]) -> tuple[dict[Move, Fitted], dict[Move, str]]:
        """Fit choices, each as the only change to the original, until the time is up.

        Returns:
            What was found, and for the others why nothing was.
        """
        found: dict[Move, Fitted] = {}
        refused: dict[Move, str] = {}
        missing: dict[str, list[Choice]] = {}
        for site_id, label in moves:
            kept = self.library.get(self._alone_key((site_id, label)))
            if kept is None:
                missing.setdefault(site_id, []).append(self.space.site(site_id).choice(label))
            else:
                found[site_id, label] = kept
        try:
            self._fit_alone(missing, found, refused)
        except OutOfTime:
            for site_id, choices in missing.items():
                for move in ((site_id, choice.label) for choice in choices):
                    if move not in found:
                        refused.setdefault(move, OUT_OF_TIME)
        return found, refused

    def _fit_alone(
        self,
        missing: Mapping[str, Sequence[Choice]],
        found: dict[Move, Fitted],
        refused: dict[Move, str],
    ) -> None:
        sites = [self.space.site(site_id) for site_id in missing]
        done = 0
        for chunk in self._chunks(sites):
            self.progress("sampling the original", done, len(sites))
            samplings = [s for _, asked in chunk for s in asked]
            tensors = {t for s in samplings for t in (*s.student_tensors, s.target)}
            # The same bits whichever sites are left to do, in whatever process.
            rows = self.rows.run(self.graph, tensors, self.tick, optimised=False)
            read = read_samples(samplings, rows, None, self.rows.reads, self.seed)
            samples = iter(with_layers(self.graph, samplings, read))
            for site, asked in chunk:
                self.progress("fitting each choice alone", done, len(sites))
                self.tick()
                data = [next(samples) for _ in asked]
                self._fit(site, missing[site.id], data, "", found, refused)
                done += 1
        self.progress("fitting each choice alone", len(sites), len(sites))

    def in_order(self, candidate: Candidate) -> tuple[dict[Move, Fitted], dict[Move, str]]:
        """Fit the choices of a candidate one after another, each behind those before it.

        Raises:
            OutOfTime: before the last was fitted; what was fitted is kept on disk.
        """
        decided = {s.id: (s, c) for s, c in self.space.decided(candidate)}
        recovered = [(s, c) for s, c in decided.values() if c.exactness == "recovered"]
        place = {t.name: i for i, node in enumerate(self.graph.nodes) for t in node.outputs}
        recovered.sort(key=lambda decision: place.get(decision[0].tensor, -1))  # inputs first
        alone, refused = self.alone([(site.id, choice.label) for site, choice in recovered])
        self.tick()
        recovered = [(s, c) for s, c in recovered if (s.id, c.label) in alone]
        last = [(s, c) for s, c in recovered if self.passes[s.pass_name].fits_last]
        recovered = [(s, c) for s, c in recovered if not self.passes[s.pass_name].fits_last]
        found: dict[Move, Fitted] = {}
        targets: Targets | None = None
        before, came = Candidate(), ""
        for done, (site, choice) in enumerate(recovered):
            self.progress("fitting the choices in order", done, len(recovered))
            after = before.with_choice(site.id, choice.label)
            context = came or ("first" if self.passes[site.pass_name].goes_on else "")
            if self.passes[site.pass_name].rounds(self.graph, site, alone[site.id, choice.label]):
                context += " in rounds"
            kept = self.library.get(self._key(site, choice, context))
            if not context:  # nothing is before it: it is as it was alone, library or not
                kept = alone[site.id, choice.label]
            if kept is not None:
                found[site.id, choice.label] = kept
            else:
                if targets is None:
                    targets = self._targets([s for s, _ in recovered], candidate)
                start = alone[site.id, choice.label]
                rounds = self.passes[site.pass_name].rounds(self.graph, site, start, self.tick)
                weights = values_only(found)
                try:
                    if rounds is not None:
                        move = (site.id, choice.label)
                        fitted = self._in_rounds(rounds, after, move, weights, targets)
                        self._take(site, choice, fitted, context, found, refused)
                    else:
                        data = self._behind(self._samplings(site), before, weights, targets)
                        self._fit(site, [choice], data, context, found, refused, [start])
                except (SiteGone, NotRecoverable) as reason:
                    refused[site.id, choice.label] = str(reason)
                    continue
            if (site.id, choice.label) in found:
                gone = self._gone(after, found)
                if gone:
                    del found[site.id, choice.label]
                    refused[site.id, choice.label] = gone
                else:
                    before, came = after, self._key(site, choice, context)
        self._fit_last(last, before, came, alone, found, refused)
        self.progress("fitting the choices in order", len(recovered), len(recovered))
        return found, refused

    def tick(self) -> None:
        """To be called now and then.

        Raises:
            OutOfTime: the deadline has passed.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime

    def _gone(self, candidate: Candidate, found: Mapping[Move, Fitted]) -> str:
        """Why the choices so far do not go together; empty if they do."""
        try:
            apply_candidate(
                self.graph, self.space, candidate, self.passes, values_only(found), shapes=False
            )
        except SiteGone as gone:
            return str(gone)
        return ""

    def _targets(self, sites: Sequence[Site], candidate: Candidate) -> Targets:
        """What the original says, at the sizes that its feature maps have in a candidate."""
        sized = [
            (site.id, choice.label)
            for site, choice in self.space.decided(candidate)
            if self.passes[site.pass_name].resizes
        ]
        only = Candidate.of(dict(sized))
        original = apply_candidate(self.graph, self.space, only, self.passes).graph
        samplings = [s for site in sites for s in self._samplings(site)]
        # The same bits whatever other choices the candidate has.
        targets = {s.target for s in samplings}
        rows = self.rows.run(original, targets, self.tick, optimised=False)
        return read_targets(samplings, rows, self.rows.reads, self.seed)

    def _in_rounds(
        self, rounds: Any, candidate: Candidate, move: Move, weights: Weights, targets: Targets
    ) -> Fitted:
        fitted, asked = next(rounds)
        while True:
            now = {**weights, move: fitted.values}
            try:
                fitted, asked = rounds.send(self._behind(asked, candidate, now, targets))
            except StopIteration as done:
                return cast(Fitted, done.value)

    def _fit_last(
        self,
        decided: Sequence[tuple[Site, Choice]],
        before: Candidate,
        came: str,
        alone: Mapping[Move, Fitted],
        found: dict[Move, Fitted],
        refused: dict[Move, str],
    ) -> None:
        """Fit choices that do not depend on each other, all from one reading of what was built.

        Those of layers that nothing touched are as they were alone: their inputs differ little.
        """
        weights, missing = values_only(found), dict[str, Choice]()
        applied = apply_candidate(self.graph, self.space, before, self.passes, weights)
        for site, choice in decided:
            move = site.id, choice.label
            same = same_layers(self.graph, applied.graph, self._samplings(site))
            kept = alone[move] if same else self.library.get(self._key(site, choice, came))
            if kept is not None:
                found[move] = kept
            else:
                missing[site.id] = choice
        for chunk in self._chunks([site for site, _ in decided if site.id in missing]):
            samplings = [s for _, asked in chunk for s in asked]
            try:
                data = iter(self._behind(samplings, before, weights, None))
            except SiteGone as gone:
                refused.update(((s.id, missing[s.id].label), str(gone)) for s, _ in chunk)
                continue
            for site, asked in chunk:
                self.tick()
                some = [next(data) for _ in asked]
                self._fit(site, [missing[site.id]], some, came, found, refused)

    def _behind(
        self,
        samplings: Sequence[Sampling],
        before: Candidate,
        weights: Weights,
        targets: Targets | None,
    ) -> list[Samples]:
        """Samples of a candidate's network; its own targets where none are given."""
        applied = apply_candidate(self.graph, self.space, before, self.passes, weights)
        samplings = [as_built(applied.graph, s, applied.stands_for) for s in samplings]
        asked = {t for s in samplings for t in s.student_tensors}
        asked |= set() if targets else {s.target for s in samplings}
        now = {t: applied.stands_for(t) for t in asked}
        if missing := sorted(set(now.values()) - applied.graph.tensors().keys()):
            raise SiteGone(f"tensor {missing[0]!r} was rewritten away")
        rows = (
            (row, role, {**values, **{old: values[new] for old, new in now.items()}})
            for row, role, values in self.rows.run(applied.graph, set(now.values()), self.tick)
        )
        samples = read_samples(samplings, rows, targets, self.rows.reads, self.seed)
        return with_layers(applied.graph, samplings, samples)

    def _fit(
        self,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        context: str,
        found: dict[Move, Fitted],
        refused: dict[Move, str],
        start: Sequence[Fitted] | None = None,
    ) -> None:
        pass_ = self.passes[site.pass_name]
        try:
            fits = pass_.recover(self.graph, site, choices, data, start, self.tick)
        except NotRecoverable as reason:
            refused.update(((site.id, choice.label), str(reason)) for choice in choices)
            return
        for choice, fitted in zip(choices, fits, strict=True):
            self._take(site, choice, fitted, context, found, refused)

    def _take(
        self,
        site: Site,
        choice: Choice,
        fitted: Fitted,
        context: str,
        found: dict[Move, Fitted],
        refused: dict[Move, str],
    ) -> None:
        finite = np.isfinite(fitted.error) and all(
            np.isfinite(v).all() for v in fitted.values.values()
        )
        if not finite:
            refused[site.id, choice.label] = "the fit did not converge to finite weights"
        elif fitted.error >= 1.0:
            refused[site.id, choice.label] = (
                f"it explains nothing of rows it was not fitted on (error {fitted.error:.2f})"
            )
        else:
            found[site.id, choice.label] = fitted
            self.library.put(self._key(site, choice, context), fitted)

    def _samplings(self, site: Site) -> Sequence[Sampling]:
        return self.passes[site.pass_name].samplings(self.graph, site)

    def _chunks(self, sites: Sequence[Site]) -> Iterator[list[tuple[Site, Sequence[Sampling]]]]:
        """Sites whose samples fit in memory together."""
        chunk: list[tuple[Site, Sequence[Sampling]]] = []
        total = 0
        tensors = self.graph.tensors()
        for site in sites:
            asked = self._samplings(site)
            size = sum(s.size_bytes(lambda name: tensors[name].shape) for s in asked)
            if chunk and total + size > _CHUNK_BYTES:
                yield chunk
                chunk, total = [], 0
            chunk.append((site, asked))
            total += size
        if chunk:
            yield chunk

    def _alone_key(self, move: Move) -> str:
        site = self.space.site(move[0])
        return self._key(site, site.choice(move[1]), "")

    def _key(self, site: Site, choice: Choice, context: str) -> str:
        """Everything a fit depends on: weights, data, choice, options, code, what came before."""
        pass_ = self.passes[site.pass_name]
        parts = (
            __version__, self.model_digest, self.rows.digest, str(self.seed), repr(pass_),
            code_digest(type(pass_)), site.id, choice.label, str(choice.params), context,
        )  # fmt: skip
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _count(folder: Path) -> int:
    """Files in a folder, which need not exist."""
    return sum(1 for _ in os.scandir(folder)) if folder.is_dir() else 0


def values_only(found: Mapping[Move, Fitted]) -> dict[Move, Mapping[str, NDArray[Any]]]:
    """As `apply_candidate` takes them."""
    return {move: fitted.values for move, fitted in found.items()}
