"""Which processor this is."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Name of this machine's processor, as the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = [line.partition(":") for line in info.read_text(encoding="utf-8").splitlines()]
        known = {name.strip(): value.strip() for name, _, value in reversed(fields)}
        parts = [known.get(n, "") for n in ("model name", "cpu family", "model")]
        if parts[0]:
            return " ".join(p for p in (parts[0], f"family {parts[1]} model {parts[2]}") if p)
    return platform.processor() or platform.machine()
