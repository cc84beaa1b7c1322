"""Jobs on all cores there are, for what they leave on disk."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence

Job = Callable[[], object]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def run_ahead(jobs: Sequence[Job]) -> None:
    """Run jobs in processes of their own, as many at once as there are cores.

    Nothing comes back: a job keeps what it finds on disk, where the caller finds it when it does
    the same itself. So a job that fails says nothing here; the caller meets the same error. Does
    nothing where that could not help: one job, one core, or a system without `fork`.
    """
    together = min(cores(), len(jobs))
    if together < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return
    shares = [jobs[i::together] for i in range(together)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(share,)) for share in shares]
    try:
        with warnings.catch_warnings():
            # Other threads wait for a compiler; none of them is needed in the copies.
            warnings.simplefilter("ignore", DeprecationWarning)
            for worker in workers:
                worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                worker.terminate()
                worker.join()


def _work(jobs: Sequence[Job]) -> None:
    for job in jobs:
        try:
            job()
        except BaseException:
            return  # see `run_ahead`
