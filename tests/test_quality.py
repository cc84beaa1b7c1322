import pytest

from onnxnas.evaluate import Measured
from onnxnas.quality import compare


@pytest.mark.parametrize(
    ("result", "most", "too_much"),
    [(0.904, 0.01, False), (0.9039, 0.01, True), (0.914, 0.0, False), (0.9139, 0.0, True)],
)
def test_a_drop_of_just_the_limit_is_allowed(result: float, most: float, too_much: bool) -> None:
    """.914 - .904 is more than .01 by a bit of the last place, and a whole search once failed."""
    (quality,) = compare([Measured("top1", 0.914)], [Measured("top1", result)])
    assert quality.exceeds(most) is too_much
