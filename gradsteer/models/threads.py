"""Whether this process's threads help: measured, for where they share fewer free cores than they are."""

import os
import time
from pathlib import Path

import torch

_WORTH_SAYING = 1.5  # times as fast with one thread
_ROUNDS = 3
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def free_cores() -> float:
    """Cores that this process may run on: by affinity, and by the quota of its container."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _QUOTA.is_file():
        quota, _, period = _QUOTA.read_text().partition(" ")
        if quota.strip().isdigit():
            cores = min(cores, int(quota) / int(period))
    return float(cores)


def steps_per_second(threads: int, *, seconds: float = 0.05) -> float:
    """How often a second a small product such as one of a decoding step is made, in the best of some rounds.

    Args:
        threads: of torch; afterwards it has as many as before.
        seconds: of a round.
    """
    before = torch.get_num_threads()
    rows, weights = torch.ones(32, 512), torch.ones(512, 512)
    torch.set_num_threads(threads)
    try:
        best = 0.0
        for _ in range(_ROUNDS):
            count, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                rows.mm(weights)
                count += 1
            best = max(best, count / spent)
        return best
    finally:
        torch.set_num_threads(before)


def advice_on_threads() -> str | None:
    """What to set where one thread is faster than all of them; nothing where they help, or there is one.

    Nothing is changed: other work on the machine may end, and results depend on the number of threads.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return None
    one, all_of_them = steps_per_second(1), steps_per_second(threads)
    if one < _WORTH_SAYING * all_of_them:
        return None
    return (
        f"{threads} threads make {all_of_them:,.0f} small products a second here and one thread {one:,.0f} "
        f"({free_cores():g} cores may be used, and other work may be on them): OMP_NUM_THREADS=1 would be faster"
    )
