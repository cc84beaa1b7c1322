"""Processor time that this process and the ones it started have used so far."""

from __future__ import annotations

import os
import time
from pathlib import Path


def cpu_seconds() -> float:
    """User and system time; of running children only where the system has ``/proc``."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _running()


def _running() -> float:
    ticks = 0
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            for child in listing.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


class Phases:
    """What a job's parts took: wall time, processor time, and how much was done in each."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float | int | str]] = []
        self._start = (time.monotonic(), cpu_seconds())

    def ended(self, phase: str, evaluations: int = 0) -> None:
        """The part since the last call is over; parts of one name are added up."""
        now = (time.monotonic(), cpu_seconds())
        row: dict[str, float | int | str] = {
            "phase": phase,
            "seconds": round(now[0] - self._start[0], 3),
            "cpu_seconds": round(max(0.0, now[1] - self._start[1]), 3),
            "evaluations": evaluations,
        }
        self.rows.append(row)
        self._start = now
