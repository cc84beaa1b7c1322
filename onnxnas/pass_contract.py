"""What a pass is: finds the places where it applies, says why elsewhere not, rewrites one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from numpy.typing import NDArray

from onnxnas.cost import Target
from onnxnas.rewriter import Rewriter
from onnxnas.samples import Samples, Sampling
from onnxnas.sites import Choice, Site


@dataclass(frozen=True)
class Miss:
    """A place where a pass could have applied but does not, and why."""

    pass_name: str
    tensor: str
    reason: str


@dataclass
class Why:
    """Collects the misses of one pass. Declining is a value; a crash is never "no match"."""

    pass_name: str
    misses: list[Miss] = field(default_factory=list)

    def miss(self, place: Any, reason: str) -> None:
        """Record a declined place.

        Args:
            place: a node (named by its first output) or a tensor name.
            reason: a clause that completes "not rewritten because ...".
        """
        name = place if isinstance(place, str) else place.outputs[0].name
        self.misses.append(Miss(self.pass_name, name, reason))


class NotRecoverable(Exception):
    """No weights can be fitted for a choice on these samples; says why, as a clause."""


class OutOfTime(Exception):
    """The time for the whole search is up."""


Tick = Callable[[], None]
"""Called now and then by what takes long; raises `OutOfTime` when the time is up."""


def no_tick() -> None:
    """For what may take as long as it takes."""


@dataclass(frozen=True)
class Fitted:
    """What was found for one `recovered` choice.

    Attributes:
        values: weights, and whatever else data decides (which channels stay), under names of the
            pass's own; `rewrite` finds them in `Rewriter.fitted`.
        error: squared error on the rows to tune by over the variance of the targets.
    """

    values: Mapping[str, NDArray[Any]]
    error: float


@dataclass(frozen=True)
class Pass(ABC):
    """One kind of rewrite. The fields of a subclass (a frozen dataclass) are its options.

    Attributes:
        name: kebab-case, equals the entry-point name.
        summary: one line for `onnxnas passes`.
        order: rewrites of one candidate are applied in ascending order of this, then in the
            order of `find_sites`. Structure first, widths next, kernels last.
        min_opset: on models of an older opset the pass declines everything.
        resizes: its rewrites give feature maps other sizes; what is fitted beside them is fitted
            to what the original says at that size.
        goes_on: what is fitted in order is fitted further, even where no other choice is before it.
        fits_last: its choices are fitted when all others are, and do not depend on each other.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    order: ClassVar[int]
    min_opset: ClassVar[int] = 9
    resizes: ClassVar[bool] = False
    goes_on: ClassVar[bool] = False
    fits_last: ClassVar[bool] = False

    @abstractmethod
    def find_sites(self, graph: Any, target: Target, why: Why) -> Iterable[Site]:
        """Places in the graph, in topological order. Pure and deterministic.

        Args:
            graph: `gs.Graph` with inferred shapes (dimensions may be symbols or None); must
                not be changed.
            target: whose card says which choices are worth offering.
            why: takes the reason for every place that looked right but is declined.
        """

    def for_new_contract(self) -> Pass:
        """The same pass where the result may have inputs and outputs of other sizes."""
        return self

    def on_device(self, device: str) -> Pass:
        """The same pass with its gradient steps made by PyTorch on a device, and more of them."""
        return self

    @abstractmethod
    def rewrite(self, rw: Rewriter, site: Site, choice: Choice) -> None:
        """Apply one choice at one site: structure now, weights as lazy constants.

        For a `recovered` choice `rw.fitted` holds what `recover` found, or nothing while it is
        only costed: then cheap stand-ins of the same shapes serve.

        Runs on a graph in which sites of earlier order, with other claims, may have been
        rewritten already; find tensors again by name.

        Raises:
            SiteGone: it cannot be applied after those.
        """

    def samplings(self, graph: Any, site: Site) -> Sequence[Sampling]:
        """What the `recovered` choices of a site are fitted on; the same for all of them.

        Args:
            graph: the original; reading weights is fine.
            site: one of this pass.
        """
        return ()

    def recover(
        self,
        graph: Any,
        site: Site,
        choices: Sequence[Choice],
        data: Sequence[Samples],
        start: Sequence[Fitted] | None = None,
        tick: Tick = no_tick,
    ) -> Sequence[Fitted]:
        """Fit the weights of some `recovered` choices of one site.

        Passes with nothing to fit, whose choices are only judged, leave this out.

        The samples come from the original when the site is judged alone, and later from the
        network that was built so far, whose earlier sites differ; the targets are the original's
        in either case. Deterministic.

        Args:
            graph: the original; for the weights to start from.
            choices: of this site; several are fitted together where they share work.
            data: one for each of `samplings`, in order.
            start: what was found for the choices when each was fitted alone; None while that is
                what is asked for.
            tick: to be called at least every second or so.

        Returns:
            One for each choice, in order.

        Raises:
            NotRecoverable: the samples do not allow a fit.
            OutOfTime: from `tick`.
        """
        return [Fitted({}, 0.0) for _ in choices]

    def rounds(
        self, graph: Any, site: Site, start: Fitted, tick: Tick = no_tick
    ) -> Generator[tuple[Fitted, Sequence[Sampling]], Sequence[Samples], Fitted] | None:
        """Fit one choice of many layers in order, each on what those before it really give.

        Instead of `recover` behind the sites that were fitted before; None where that is to do.

        Args:
            graph: the original.
            site: one of this pass.
            start: what was found for the choice when it was fitted alone.
            tick: as for `recover`.

        Yields:
            What is to be in the network, and the samplings to read there; samples of those are
            sent back. The targets are among those of `samplings`.

        Returns:
            What was found.

        Raises:
            NotRecoverable: the samples do not allow a fit.
            OutOfTime: from `tick`.
        """
        return None
