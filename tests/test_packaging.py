"""What is shipped: the folders that are packages, the two links, the contents of the wheel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PARTS = ("onnxnas", "passes", "hwmodels")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def shipped(suffix: str) -> set[str]:
    """Files of the three folders as they are called in the wheel."""
    return {
        f"{'' if part == 'onnxnas' else 'onnxnas/'}{path.relative_to(ROOT).as_posix()}"
        for part in PARTS
        for path in (ROOT / part).glob(f"*{suffix}")
    }


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    # A forgotten one would be missing from the wheel, without a warning.
    folders = {path.parent for part in PARTS for path in (ROOT / part).rglob("__init__.py")}
    names = {f.relative_to(ROOT).as_posix().replace("/", ".") for f in folders if not linked(f)}
    listed = set(pyproject()["tool"]["setuptools"]["packages"])
    assert {n if n.startswith("onnxnas") else f"onnxnas.{n}" for n in names} == listed


def linked(folder: Path) -> bool:
    return any(parent.is_symlink() for parent in (folder, *folder.parents))


@pytest.mark.parametrize("part", ["passes", "hwmodels"])
def test_folders_of_plugins_are_flat_and_linked(part: str) -> None:
    assert [p.name for p in (ROOT / part).iterdir() if p.is_dir() and p.name[0] not in "_."] == []
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so links cannot be told from copies")
    listed = subprocess.run(
        ["git", "ls-files", "-s", f"onnxnas/{part}"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert listed.stdout.startswith("120000 ")
    assert (ROOT / "onnxnas" / part).resolve() == ROOT / part


@pytest.mark.parametrize("part", ["passes", "hwmodels"])
def test_there_is_no_second_copy_to_import(part: str) -> None:
    command = [sys.executable, "-c", f"import {part}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"import onnxnas.{part}, not {part}" in run.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a freshly built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves build files beside the source
    unwanted = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "tests")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_nothing_else(wheel: dict[str, bytes]) -> None:
    names = set(wheel)
    info = {n for n in names if n.startswith("onnxnas-") and ".dist-info/" in n}
    assert {name.split("/")[0] for name in names - info} == {"onnxnas"}
    assert {name for name in names - info if name.endswith(".py")} == shipped(".py")
    assert {name for name in names - info if not name.endswith(".py")} == (
        shipped(".json") | shipped(".cbm") | {"onnxnas/py.typed"}
    )
    for name in names:
        assert not name.endswith(".json") or json.loads(wheel[name])
    assert any(name.endswith("licenses/LICENSE") for name in info)


@pytest.mark.slow
def test_the_wheel_holds_what_every_entry_point_names(wheel: dict[str, bytes]) -> None:
    (file,) = (n for n in wheel if n.endswith(".dist-info/entry_points.txt"))
    points = ConfigParser(delimiters="=")
    points.read_string(wheel[file].decode())
    groups = {"onnxnas.passes", "onnxnas.targets", "onnxnas.target_files"}
    assert set(points.sections()) == {"console_scripts", *groups}
    for section in points.sections():
        for name, value in points[section].items():
            module = value.partition(":")[0].replace(".", "/")
            assert f"{module}.py" in wheel, f"{section}: {name}"
