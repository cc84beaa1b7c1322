"""Jobs in processes of their own, for what they leave on disk."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence

Job = Callable[[], object]

_MOST = 4
"""Processes by default: each holds samples of its own."""

_LOOK_S = 0.2


def default_workers() -> int:
    """One for each core that this process may use, a few at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(_MOST, cores)


def run_ahead(jobs: Sequence[Job], waiting: Callable[[], None]) -> None:
    """Run jobs side by side, each in a process of its own.

    Nothing comes back: a job keeps what it finds on disk, where the caller finds it when it does
    the same itself. So a job that fails says nothing here; the caller meets the same error. Does
    nothing where that could not help: one job, or a system on which a process is not copied.

    Args:
        waiting: called now and then until all have ended; what it raises ends them.
    """
    if len(jobs) < 2 or sys.platform != "linux":
        return
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(job, os.getpid())) for job in jobs]
    try:
        with warnings.catch_warnings():
            # Other threads show progress or wait for a compiler; the copies need none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            for worker in workers:
                worker.start()
        for worker in workers:
            while worker.is_alive():
                waiting()
                worker.join(_LOOK_S)
    finally:
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                worker.terminate()
                worker.join()


def _work(job: Job, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        job()
    except BaseException:
        return  # see `run_ahead`


def _end_with(parent: int) -> None:
    """A search that was killed leaves nobody working for it."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
