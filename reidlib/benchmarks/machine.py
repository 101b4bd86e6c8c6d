"""What the figures were measured on, and a clock that compares fairly."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The processor, GPU, threads and versions that a measurement holds for."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def alternate(runs: Mapping[str, Callable[[], Any]], repeats: int = 7, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each of `repeats` runs, which take turns, A B A B ...: a busy moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name, run in runs.items():
            begun = _now()
            run()
            if turn >= warm_up:
                seconds[name].append(_now() - begun)
    return seconds


def paired_ratio(seconds: Mapping[str, list[float]], a: str, b: str) -> float:
    """The median over the turns of a's time over b's in the same turn."""
    return median(first / second for first, second in zip(seconds[a], seconds[b], strict=True))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that gives no name
        return platform.processor() or platform.machine()
