"""Jobs side by side: what they leave on disk, and that none of them stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxnas.forks import default_workers, run_ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are not copied here")


def note(path: Path) -> None:
    path.write_text(str(os.getpid()))


def stay(path: Path) -> None:
    note(path)
    time.sleep(60)


def fail(path: Path) -> None:
    note(path)
    raise ValueError("the caller will meet this itself")


def ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_for(path: Path) -> int:
    until = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path.name} is not there"
        time.sleep(0.01)
    return int(path.read_text())


def test_each_job_has_a_process_of_its_own_and_may_fail(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    run_ahead(
        [lambda: note(files[0]), lambda: fail(files[1]), lambda: note(files[2])], lambda: None
    )
    pids = {path.read_text() for path in files}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids


def test_one_job_is_not_worth_a_process(tmp_path: Path) -> None:
    run_ahead([lambda: note(tmp_path / "a")], lambda: None)
    assert not (tmp_path / "a").exists()
    assert 1 <= default_workers() <= 4


def test_who_waits_can_end_them(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]

    def waiting() -> None:
        if all(path.exists() and path.read_text() for path in files):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_ahead([lambda: stay(files[0]), lambda: stay(files[1])], waiting)
    assert all(ended(int(path.read_text())) for path in files)


def test_nobody_works_on_for_a_search_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, test_forks as t\n"
        "a, b = (pathlib.Path(p) for p in sys.argv[1:])\n"
        "t.run_ahead([lambda: t.stay(a), lambda: t.stay(b)], lambda: None)"
    )
    files = [tmp_path / "a", tmp_path / "b"]
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    search = subprocess.Popen([sys.executable, "-c", code, *map(str, files)], env=env)
    pids = [wait_for(path) for path in files]
    search.send_signal(signal.SIGKILL)
    search.wait()
    until = time.monotonic() + 20
    while not all(ended(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)
