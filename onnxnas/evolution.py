"""NSGA-II over the choices of a problem, by pymoo."""

from __future__ import annotations

from onnxnas.problem import Figures, Genes
from onnxnas.strategy import Strategy


class Evolution(Strategy):
    """NSGA-II."""

    name = "evolution"

    def ask(self) -> Genes:
        return self.start[:0]

    def tell(self, genes: Genes, figures: Figures) -> None:
        pass
