"""Compiles of TFLite files by Vela: worker processes, a cache in memory and on disk.

Vela 5.2's core (``ethosu.regor``) is an internal interface; tests compare it with the ``vela``
command.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnxnas.errors import OnnxnasError, UnsupportedError

_MEMORY_ENTRIES = 1024
_DISK_ENTRIES = 20_000
"""About 5 KB each."""
_FORMAT = 1
"""Of a cache entry; part of the key."""


@dataclass(frozen=True)
class Operator:
    """One row of Vela's performance table.

    Attributes:
        source: number of the TFLite operator it comes from; None where Vela does not say.
        leader: row of the operator that it runs inside of, at no cost of its own, or None.
        tensor: name of the tensor it writes.
        kind: what runs, e.g. ``Conv2D``; ``Passthrough`` is left to the CPU.
        cycles: NPU core cycles.
        macs: multiply-accumulates.
    """

    source: int | None
    leader: int | None
    tensor: str
    kind: str
    cycles: int
    macs: int


@dataclass(frozen=True)
class Compiled:
    """What Vela reports about one TFLite file.

    Attributes:
        cycles: total core cycles, the sum over `operators`.
        macs: multiply-accumulates.
        weight_bytes: weights as encoded for the NPU.
        constant_bytes: all constants: encoded weights, biases with their scales, tables.
        memory: peak bytes per memory, as Vela names them, e.g. ``Sram``, ``Dram``.
        operators: in the order they run.
        messages: what Vela printed; says why an operator was left to the CPU.
    """

    cycles: int
    macs: int
    weight_bytes: int
    constant_bytes: int
    memory: Mapping[str, int]
    operators: tuple[Operator, ...]
    messages: str

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Compiled:
        """From the worker's answer or a cache entry; raises KeyError or TypeError on a bad one."""
        return cls(
            int(fields["cycles"]),
            int(fields["macs"]),
            int(fields["weight_bytes"]),
            int(fields["constant_bytes"]),
            {str(k): int(v) for k, v in fields["memory"].items()},
            tuple(Operator(*row) for row in fields["operators"]),
            str(fields["messages"]),
        )


@dataclass(frozen=True)
class System:
    """The accelerator and its memories, in Vela's words.

    Attributes:
        accelerator: e.g. ``ethos-u55-128``.
        macs: per core and cycle.
        cores: of the accelerator.
        system_config: section of Vela's ``vela.ini``.
        memory_mode: section of Vela's ``vela.ini``.
        arena_bytes: the memory that tensors are kept in while they are worked on.
    """

    accelerator: str
    macs: int
    cores: int
    system_config: str
    memory_mode: str
    arena_bytes: int

    def request(self) -> dict[str, str]:
        """What the compiler core wants to be told, as the ``vela`` command tells it."""
        spec = importlib.util.find_spec("ethosu.regor")
        if spec is None or spec.origin is None:
            raise OnnxnasError("Vela is not installed: pip install 'ethos-u-vela>=5.2,<5.3'.")
        ini = Path(spec.origin).with_name("config_files") / "Arm" / "vela.ini"
        family = "".join(part.capitalize() for part in self.accelerator.split("-")[:-1])
        system = (
            f"[architecture]\nmacs={self.macs}\ncores={self.cores}\n"
            f"[vela]\nsystem_config_name={self.system_config}\n"
            f"memory_mode_name={self.memory_mode}\n{ini.read_text(encoding='utf-8')}"
        )
        options = (
            "\n[compiler]\nenable_db=true\noutput_format=TFLite\ncop_format=COP1\n"
            f"\n[scheduler]\noptimize=Performance\narena_size_limit={self.arena_bytes}\n"
            "disable_feature=\ncpu_tensor_alignment=16\ntensor_allocator=HillClimb\n"
            "\n[graph]\n"
        )
        return {"architecture": family, "system": system, "options": options}


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/onnxnas`` or ``~/.cache/onnxnas``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxnas"


class VelaCompiler:
    """Compiles TFLite files for one system, each only once.

    Args:
        system: what to compile for.
        cache_dir: where compiles are kept between runs, or None.
        jobs: worker processes at most; default: the cores this process may use.
    """

    def __init__(self, system: System, cache_dir: Path | None, jobs: int | None = None) -> None:
        self._request = system.request()
        self._cache = None if cache_dir is None else _DiskCache(cache_dir / "vela")
        self._memory: OrderedDict[str, Future[Compiled]] = OrderedDict()
        self._jobs = jobs or _cores()
        self._start()
        about = json.dumps([_FORMAT, version("ethos-u-vela"), asdict(system), self._request])
        self._key = hashlib.blake2b(about.encode(), digest_size=20)

    def submit(self, tflite: bytes) -> Future[Compiled]:
        """Start compiling a file, unless that is done or under way.

        The result raises UnsupportedError where Vela fails on the file.
        """
        digest = self._key.copy()
        digest.update(tflite)
        key = digest.hexdigest()
        future = self._memory.get(key)
        if future is None or (future.done() and (future.cancelled() or future.exception())):
            known = None if self._cache is None else self._cache.read(key)
            if known is None:
                future = self._crew.submit(lambda worker: self._compile(worker, key, tflite))
            else:
                future = Future()
                future.set_result(known)
        self._memory[key] = future
        self._memory.move_to_end(key)
        while len(self._memory) > _MEMORY_ENTRIES:
            self._memory.popitem(last=False)
        return future

    def cancel(self) -> None:
        """Drop all compiles that are not done; later ones start new workers."""
        for key, future in list(self._memory.items()):
            if not future.done():
                del self._memory[key]
        self._finish()
        self._start()

    def _start(self) -> None:
        self._crew = _Crew(self._jobs)
        self._finish = weakref.finalize(self, self._crew.end)

    def _compile(self, worker: _Worker, key: str, tflite: bytes) -> Compiled:
        answer = worker.ask(self._request, tflite)
        if "error" in answer:
            raise UnsupportedError(f"Vela cannot compile the network: {answer['error']}.")
        compiled = Compiled.parse(answer)
        if self._cache is not None:
            self._cache.write(key, answer)
        return compiled


class _DiskCache:
    """One small JSON file per compile; a bad one counts as absent, the oldest are dropped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pruned = False

    def read(self, key: str) -> Compiled | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return Compiled.parse(json.loads(self._path(key).read_text(encoding="utf-8")))
        return None  # absent or damaged: it is compiled again

    def write(self, key: str, answer: Mapping[str, Any]) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
            ) as file:
                json.dump(answer, file, separators=(",", ":"))
            os.replace(file.name, path)
            self._prune()
        except OSError as error:
            warnings.warn(f"Vela's results are not kept in {self._folder}: {error}", stacklevel=2)

    def _prune(self) -> None:
        """Once per process: keep the newest half when there are too many entries."""
        if self._pruned:
            return
        self._pruned = True
        entries = list(self._folder.glob("*/*.json"))
        if len(entries) > _DISK_ENTRIES:
            entries.sort(key=lambda p: p.stat().st_mtime)
            for path in entries[: len(entries) - _DISK_ENTRIES // 2]:
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key[2:]}.json"


class _Worker:
    """A process that compiles one file after another."""

    def __init__(self) -> None:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
        # Started by file, not as a module: it needs the compiler and nothing of this package.
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("vela_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def ask(self, request: Mapping[str, str], tflite: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        header = json.dumps({**request, "size": len(tflite)}) + "\n"
        try:
            self._process.stdin.write(header.encode() + tflite)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):
            line = b""
        if not line:
            self.close()
            code = self._process.returncode
            raise UnsupportedError(f"Vela's compiler ended with status {code} on the network.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def closed(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # a request that was never read
                assert pipe is not None
                pipe.close()


class _Crew:
    """Threads that each drive one worker process; both start when they are first needed."""

    def __init__(self, size: int) -> None:
        self._threads = ThreadPoolExecutor(size, "vela")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._workers: list[_Worker] | None = []  # None: this crew has ended

    def submit(self, task: Callable[[_Worker], Compiled]) -> Future[Compiled]:
        """Run a task on the next free worker."""
        return self._threads.submit(lambda: task(self._worker()))

    def end(self) -> None:
        """End all workers, whatever they are doing."""
        with self._lock:
            workers, self._workers = self._workers or [], None
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()

    def _worker(self) -> _Worker:
        """The worker of this thread; a new one in place of one that crashed."""
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None or worker.closed:
            with self._lock:
                if self._workers is None:
                    raise CancelledError
                worker = self._own.worker = _Worker()
                self._workers.append(worker)
        return worker


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
