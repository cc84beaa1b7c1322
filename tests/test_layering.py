"""The house rules that an import or a line count can show: the tables here are the rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = """
7 __init__ __main__ cli rewrite_cli refine_cli options search_options console import_cli target_cli
6 strategy_checks pipeline finishing choose exact_search fitting efforts outcome damage ledger
6 distilled wanted plan result testing
6 report report_page report_tables page front_picture curve_picture
5 prepare search screening greedy cost_table interactions materialize verify evaluate quality
5 metrics front_point rules rule_file rule_costs recipe transfer attribution
5 problem strategy strategies exact integer_program evolution journal study front
5 fit_rows int8 torch_network distill proxies recover divergence held_out recovery_search
5 zero_shot corrected_sums
4 plugins
4 passes.* hwmodels.*
3 pass_contract cost calibration pictures samples channel_fit joint_widths activation_fit width_pass
3 gradient_fit block_fit block_library
3 objectives
2 rewriter sites ops kernels weight_statistics coupling channels channel_flow channel_rules
2 channel_values least_squares level_fit resize_nodes memory fusion pointwise squeeze_excite
1 folding noise quantise graph roundtrip protos loading normalise runtime difference probes foreign
1 excerpt resized
0 arrays errors version toml_file cpu_time forks
"""
"""Imports point down, or stay in a layer without a cycle."""

ONLY_IN = {
    "onnx": "1 int8",
    "google": "1",
    "onnx_graphsurgeon": "1 2 passes.* hwmodels.* testing",
    "onnxruntime": "runtime quantise hwmodels.*",
    "onnxslim": "normalise",
    "PIL": "pictures calibration",
    "matplotlib": "front_picture curve_picture",
    "pymoo": "evolution",
    "ethosu": "hwmodels.*",
    "flatbuffers": "hwmodels.*",
    "typer": "search_options cli rewrite_cli refine_cli options import_cli target_cli",
    "torch": "arrays torch_network distill",
    "rich": "console target_cli",
}
"""The layers and modules that may import a third party's package."""

MAKES_TARGETS = {"import_cli", "target_cli"}
"""Commands that measure for, train and check targets: they name the tools, not the targets."""

READS_ENVIRONMENT = {
    "__main__": "threads of the matrix library, unless the user says how many",
    "hwmodels.vela_compiler": "where the user keeps caches: XDG_CACHE_HOME",
}
MAX_LINES = 400
CACHES = {"cache", "lru_cache", "functools.cache", "functools.lru_cache"}
MUTATING = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem",
    "remove", "setdefault", "update",
}  # fmt: skip


@cache
def sources() -> dict[str, Path]:
    """Module name without ``onnxnas.`` -> file."""
    found = {path.stem: path for path in (ROOT / "onnxnas").glob("*.py")}
    for folder in ("passes", "hwmodels"):
        found |= {f"{folder}.{path.stem}": path for path in (ROOT / folder).glob("*.py")}
    return dict(sorted(found.items()))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


def matches(module: str, patterns: str) -> bool:
    folder = f"{module.partition('.')[0]}.*"
    return module in patterns.split() or ("." in module and folder in patterns.split())


def layer(module: str) -> int:
    lines = [line.partition(" ") for line in LAYERS.strip().splitlines()]
    found = [int(number) for number, _, patterns in lines if matches(module, patterns)]
    assert len(found) == 1, f"{module} is in {len(found)} layers of the table; put it in one"
    return found[0]


def imported(module: str, *, at_run_time: bool = False) -> Iterator[str]:
    """Full names of all modules a module imports, also inside functions."""
    skipped: set[int] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and at_run_time:
            skipped |= {id(n) for part in node.body for n in ast.walk(part)}
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inner = full.removeprefix("onnxnas.")
                yield full if full.startswith("onnxnas.") and inner in sources() else node.module


def inner_imports(module: str, *, at_run_time: bool = False) -> set[str]:
    """Our own modules that a module imports."""
    found = set()
    for name in imported(module, at_run_time=at_run_time):
        package, _, rest = name.partition(".")
        if package == "onnxnas":
            found.add(f"{rest}.__init__" if rest in {"passes", "hwmodels"} else rest or "__init__")
    return found


@pytest.mark.parametrize("module", sources())
def test_imports_point_down(module: str) -> None:
    here = layer(module)
    for other in sorted(inner_imports(module)):
        there = layer(other)
        family = module.partition(".")[0]
        assert there <= here, f"{module} (layer {here}) imports {other} (layer {there})"
        if "." in module:
            own = family == "hwmodels" and other.startswith("hwmodels.")
            assert there <= 3 or own, f"{module} is a plug-in like any other; it imports {other}"
        elif "." in other and not (module in MAKES_TARGETS and other.startswith("hwmodels.")):
            raise AssertionError(f"{module} imports {other}, which comes in by its entry point")


def test_no_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in sorted(inner_imports(module, at_run_time=True)):
                visit(other, (*path, module))
            done.add(module)

    for module in sources():
        visit(module, ())
    assert done == set(sources())


@pytest.mark.parametrize("module", sources())
def test_packages_of_others_stay_where_they_belong(module: str) -> None:
    for name in imported(module, at_run_time=True):
        package = name.partition(".")[0]
        allowed = ONLY_IN.get(package)
        if allowed is not None and str(layer(module)) not in allowed.split():
            assert matches(module, allowed), f"{module} imports {package}"


def test_a_file_is_short_enough_to_be_read() -> None:
    files = [*sources().values(), *(ROOT / "tests").rglob("*.py")]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("module", sources())
def test_nothing_in_a_module_changes_while_it_runs(module: str) -> None:
    """No writes to module-level names, no caches on functions, no environment in logic."""
    names = set(top_level_names(module))
    for node in ast.walk(tree(module)):
        place = f"{module}, line {getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Global), f"{place}: global"
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            assert ast.unparse(node.value) not in names, f"{place}: writes into a module's name"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            writes = node.func.attr in MUTATING and ast.unparse(node.func.value) in names
            assert not writes, f"{place}: changes a module's name"
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(d).partition("(")[0] for d in node.decorator_list}
            assert not decorators & CACHES, f"{place}: a cache for the life of the process"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}:
            assert module in READS_ENVIRONMENT, f"{place}: reads the environment"


def top_level_names(module: str) -> Iterator[str]:
    for node in tree(module).body:
        if isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
