"""Runs Vela's compiler core in a process of its own; started by `vela.py`, never imported.

The core prints to the C-level standard output, holds the interpreter lock while it works and can
crash on input it does not like: none of that may happen in the user's process. Reads requests
from standard input until it is closed: one line of JSON, then that many bytes of TFLite. Answers
each with one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from typing import Any


def compile_tflite(request: dict[str, Any], tflite: bytes) -> dict[str, Any]:
    """Compile one file and boil the report down to plain JSON values.

    `operators` has one row per operator that runs: [source operator or None, leader's row or
    None, name of the written tensor, what runs, cycles, MACs], rows of one source added up where
    they follow each other.
    """
    from ethosu import regor

    compiled = regor.compile(
        request["architecture"],
        tflite,
        "TFLITE",
        request["system"],
        options=request["options"],
        verbose=False,
    )
    report, tables = compiled.perf_report, compiled.opt_database.tables
    return {
        "cycles": report.totalCycles,
        "macs": report.macCount,
        "weight_bytes": report.encodedWeights,
        "constant_bytes": report.readOnlyPeakUsage,
        "memory": {str(m.memoryName): m.peakUsage for m in report.memories.values()},
        "operators": _operators(tables),
    }


def _operators(tables: Any) -> list[list[Any]]:
    sources = _column(tables, "source", "ext_key")
    leaders = _column(tables, "group", "group_id")
    table = tables["perf"]
    columns = [
        table.header.index(n)
        for n in ("id", "source_id", "name", "operator", "op_cycles", "mac_count")
    ]
    rows: list[list[Any]] = []
    places: dict[str, int] = {}
    for data in table.data:
        number, source, name, operator, cycles, macs = (data[c] for c in columns)
        key = int(sources[source]) if source in sources else None
        leader = places.get(leaders.get(number, ""))
        same = rows and [*rows[-1][:4]] == [key, leader, name, operator]
        if same:  # an ArgMax becomes one row per pixel
            rows[-1][4] += int(cycles)
            rows[-1][5] += int(macs)
        else:
            rows.append([key, leader, name, operator, int(cycles), int(macs)])
        places[number] = len(rows) - 1
    return rows


def _column(tables: Any, table: str, column: str) -> dict[str, str]:
    if table not in tables:
        return {}
    data, place = tables[table].data, tables[table].header.index(column)
    return {row[0]: row[place] for row in data}


def main() -> None:
    """Serve requests until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this ends
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 1)
        os.dup2(noise.fileno(), 2)
        while line := sys.stdin.buffer.readline():
            request = json.loads(line)
            tflite = sys.stdin.buffer.read(request["size"])
            noise.seek(0)
            noise.truncate()
            try:
                answer = compile_tflite(request, tflite)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            _flush()
            noise.seek(0)
            answer["messages"] = noise.read().decode("utf-8", "replace")
            print(json.dumps(answer), file=answers, flush=True)


def _flush() -> None:
    """Bring what the core printed from the C library's buffer into the file."""
    import ctypes

    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)


if __name__ == "__main__":
    main()
