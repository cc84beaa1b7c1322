"""Plug-ins of third parties: a real one installed, and every way in which one can be broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import models
import onnx
import pytest
from fakes import ToyCostModel

from onnxnas.errors import UsageError
from onnxnas.graph import from_model, static_view
from onnxnas.plugins import (
    PASS_GROUP,
    TARGET_GROUP,
    choose_passes,
    load_passes,
    load_predictor,
    load_target,
    target_names,
)
from onnxnas.testing import check_cost_model, check_pass

EXAMPLE = Path(__file__).parent / "plugin_example"


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the example project was installed into, by pip."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")  # setuptools leaves build files beside the source
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline]
    target = folder / "site-packages"
    subprocess.run([*command, "--target", str(target), str(folder / "source")], check=True)
    return target


@pytest.fixture
def example(site_packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site_packages))


def relu_then_pool() -> onnx.ModelProto:
    b = models.ModelBuilder([1, 3, 8, 8])
    x = b.op("Relu", b.conv(b.x, 3, 6, 3))
    return b.build(b.conv(b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="y"), 6, 4))


@pytest.mark.usefixtures("example")
def test_an_installed_pass_takes_its_place_among_the_built_in_ones() -> None:
    passes, _ = load_passes()
    assert "relu-before-pool" in passes
    assert "depthwise-to-standard" in passes
    assert [p.order for p in passes.values()] == sorted(p.order for p in passes.values())


@pytest.mark.usefixtures("example")
def test_an_installed_pass_and_target_keep_the_contract() -> None:
    model = relu_then_pool()
    target = load_target("one-mac")
    sites = check_pass(load_passes()[0]["relu-before-pool"], model, target.target)
    assert [site.id for site in sites] == ["relu-before-pool@y"]
    cost = check_cost_model(target, static_view(from_model(model), {}))
    assert cost.cycles == 6 * 6 * 6 * 27 + 6 * 6 * 6 + 6 * 3 * 3 + 4 * 3 * 3 * 6


def test_what_is_not_installed_is_not_there() -> None:
    assert "relu-before-pool" not in load_passes()[0]
    assert "one-mac" not in target_names()


class Installer:
    """Writes what pip would leave of a project: its metadata and one module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, project: str, group: str, entry: str, code: str = "") -> None:
        info = self.folder / f"{project}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
        (self.folder / f"{project}.py").write_text(code)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Installer(tmp_path)


NAMED = """
from onnxnas.passes.depthwise_to_standard import DepthwiseToStandard
class Renamed(DepthwiseToStandard):
    name = "another-name"
"""


@pytest.mark.parametrize(
    ("project", "entry", "code", "reason"),
    [
        ("gone", "p = gone_nowhere:Pass", "", "ModuleNotFoundError: No module named"),
        ("lacks", "p = lacks:Pass", "", "AttributeError"),
        ("raises", "p = raises:Pass", "raise RuntimeError('no device')", "RuntimeError: no device"),
        ("other", "p = other:dict", "dict = dict", "TypeError: other:dict is not a Pass"),
        ("named", "p = named:Renamed", NAMED, "ValueError: it calls itself 'another-name'"),
    ],
)
def test_a_broken_pass_stays_in_the_list_with_its_reason(
    install: Installer, project: str, entry: str, code: str, reason: str
) -> None:
    install(project, PASS_GROUP, entry, code)
    passes, broken = load_passes()
    found = {b.name: b for b in broken}["p"]
    assert found.owner == f"{project} 1.0"
    assert reason in found.reason
    assert "depthwise-to-standard" in passes


def test_two_plugins_of_one_name_are_an_error_that_names_both(install: Installer) -> None:
    install("second", PASS_GROUP, "depthwise-to-standard = second:Pass")
    with pytest.raises(UsageError, match=r"'depthwise-to-standard'.*onnxnas.*") as error:
        load_passes()
    assert "second 1.0" in str(error.value)
    install("third", TARGET_GROUP, "ethos-u55-128 = third:target")
    with pytest.raises(UsageError, match=r"'ethos-u55-128'.*third 1\.0"):
        load_target("ethos-u55-256")


def test_a_target_that_cannot_be_loaded_says_whose_it_is(install: Installer) -> None:
    install("board", TARGET_GROUP, "my-board = board:target", "raise OSError('no such board')")
    install("card", TARGET_GROUP, "my-card = card:target", "def target(): return 7")
    assert {"my-board", "my-card"} <= set(target_names())
    with pytest.raises(UsageError, match=r"'my-board' of board 1\.0 .* OSError: no such board"):
        load_target("my-board")
    with pytest.raises(UsageError, match=r"'my-card' of card 1\.0 is not a CostModel"):
        load_target("my-card")


def test_a_usage_error_of_a_target_is_not_wrapped(install: Installer) -> None:
    code = "from onnxnas.errors import UsageError\ndef target(): raise UsageError('Plug it in.')"
    install("probe", TARGET_GROUP, "probe = probe:target", code)
    with pytest.raises(UsageError, match=r"^Plug it in\.$"):
        load_target("probe")


def test_a_misspelt_target_gets_a_hint() -> None:
    with pytest.raises(UsageError, match="did you mean 'ethos-u55-128'"):
        load_target("ethosu55-128")


def test_passes_are_chosen_by_name_in_their_own_order() -> None:
    passes, _ = load_passes()
    assert choose_passes(passes, None, None) == list(passes.values())
    wanted = ["depthwise-to-standard", "merge-linear-convs"]
    assert [p.name for p in choose_passes(passes, wanted, None)] == wanted[::-1]
    skipped = choose_passes(passes, None, ["merge-linear-convs"])
    assert "merge-linear-convs" not in [p.name for p in skipped]
    with pytest.raises(UsageError, match="Unknown pass 'dense'"):
        choose_passes(passes, ["dense"], None)


def test_what_was_learned_about_a_built_in_target_is_found_by_its_name() -> None:
    learned = load_predictor("ethos-u55-128")
    assert learned is not None
    assert learned.predictor() is learned
    assert (learned.target.name, learned.target.kind) == ("ethos-u55-128", "predicted")
    assert load_target("ethos-u55-128").target.kind == "estimate"


def test_a_target_nobody_learned_about_has_no_predictor() -> None:
    assert ToyCostModel().predictor() is None
