"""What the benchmarks share: options, timing in turns, memory of a process, and the closing JSON line.

A benchmark states ratios of medians from one run on one machine. The contenders take turns, so that
a busy moment meets all of them; what they return is compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def options(description: str, *arguments: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Parse the command line: `--quick` (smaller sizes, under a minute) and the `arguments` given."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes; ends within a minute")
    for flag, attributes in arguments:
        parser.add_argument(flag, **attributes)
    return parser.parse_args()


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run every contender once a round, in order.

    Args:
        contenders: name -> job without arguments.
        rounds: timed rounds.
        warmup: rounds before them that are not timed.
        clock: wall time, or `time.process_time` for jobs that only compute: other processes on
            the machine then do not count.

    Returns:
        name -> seconds, one for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warmup, rounds):
        for name, job in contenders.items():
            started = clock()
            job()
            if turn >= 0:
                seconds[name].append(clock() - started)
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median over rounds of theirs / ours; slow drifts of the machine meet both and cancel."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the sorted values lie, nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def matmul_flops(size: int = 2048) -> float:
    """FLOP/s of a large float32 matrix product on this machine, with torch's number of threads."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = take_turns({"matmul": lambda: a @ b}, rounds=5)["matmul"]
    return 2 * size**3 / median(seconds)


def peak_memory() -> int:
    """Peak resident memory of this program so far, in bytes; Linux.

    `getrusage` would count what the process was before it became this program.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def report(
    name: str, *, against: str, ratio: float, floor_ratio: float | None = None, **figures: object
) -> None:
    """Print the result as one JSON object on the last line.

    Args:
        name: of the benchmark.
        against: the competitor, with its version.
        ratio: theirs / ours, of seconds or bytes; above 1 is in our favour.
        floor_ratio: ours / the floor, which is what raw bytes cost.
        figures: whatever else belongs to the result.
    """
    content: dict[str, object] = {"name": name, "against": against, "ratio": round(ratio, 3)}
    if floor_ratio is not None:
        content["floor_ratio"] = round(floor_ratio, 3)
    print(json.dumps({**content, **figures}, default=str))
