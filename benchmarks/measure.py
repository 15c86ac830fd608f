"""What the benchmarks share: cases timed in turn, ratios pair by pair, fresh processes, a table.

Machines are noisy: memory alone is several times slower in one process than in the next. So
times are CPU seconds of one thread (equal to wall time on a quiet machine), nothing is compared
across rounds, what matters runs in several processes, and every table has an A/A control: the base
timed twice. A ratio that is not further from 1 than that is no finding.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

Times = dict[str, list[float]]
"""CPU seconds of every round, by case."""

Case = Callable[[], Callable[[], object]]
"""Prepares a case and returns what is timed."""


def in_turn(cases: Mapping[str, Case], rounds: int, warm: int = 1) -> Times:
    """Time every case once a round, there and back; ``warm`` rounds before are not counted."""
    times: Times = {name: [] for name in cases}
    for round_index in range(-warm, rounds):
        for name in list(cases)[:: -1 if round_index % 2 else 1]:
            run = cases[name]()
            start = time.process_time()
            run()
            if round_index >= 0:
                times[name].append(time.process_time() - start)
    return times


def fresh_process(script: str, *arguments: str) -> dict[str, list[float]]:
    """Run ``script`` with one thread in a new interpreter; return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratio(times: Times, name: str, base: str) -> float:
    """Return the median over rounds of the time of ``name`` in the time of ``base``."""
    return median(a / b for a, b in zip(times[name], times[base], strict=True))


def compare(processes: Sequence[Times], base: str, per_call: int = 1, unit: float = 1e-3) -> None:
    """Print a row for each case: median time, median ratio to ``base``, range over processes.

    With one process the range is over its rounds.

    Args:
        processes: the times of each process.
        base: the case that the others are compared with.
        per_call: how many things one timed call did, such as steps.
        unit: what times are printed in, in seconds.
    """
    print(f"  {'':<36} {_unit(unit):>9}   ratio  [lowest, highest]")
    for name in processes[0]:
        if len(processes) > 1:
            ratios = [ratio(times, name, base) for times in processes]
        else:
            pairs = zip(processes[0][name], processes[0][base], strict=True)
            ratios = [a / b for a, b in pairs]
        typical = median(median(times[name]) for times in processes) / per_call / unit
        spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"  {name:<36} {typical:9.2f}  {median(ratios):6.2f}  {spread}")


def _unit(seconds: float) -> str:
    return {1.0: "s", 1e-3: "ms", 1e-6: "us"}[seconds]


def verdict(what: str, found: float, aim: float, at_least: bool = False) -> None:
    """Print whether an aim was met."""
    met = found >= aim if at_least else found <= aim
    sign = ">=" if at_least else "<="
    print(f"  {'met ' if met else 'MISSED'} {what}: {found:.3g}, aim {sign} {aim:g}")


def machine() -> str:
    """Return what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{os.cpu_count()} cores, {model or sys.platform}, Python {sys.version.split()[0]}, {load}"
    )
