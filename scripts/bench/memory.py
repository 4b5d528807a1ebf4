"""Peak memory of a piece of work, above what the process held before it."""

import contextlib
import ctypes
import gc
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_above(work: Callable[[], object], device: str) -> int:
    """Bytes at the peak of the work less the bytes held just before it.

    On CUDA the allocator's own peak. On Linux the kernel's high-water mark of resident memory, which is exact and costs
    nothing; where it cannot be reset, a thread that looks every millisecond.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):  # musl and macOS have none
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")  # resets VmHWM
    except OSError:
        return _sampled(work)
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"no {key} in {_STATUS}"
    return int(found[1]) * 1024


def _sampled(work: Callable[[], object]) -> int:
    before, peak, running = _status("VmRSS"), [0], threading.Event()
    running.set()

    def watch() -> None:
        while running.is_set():
            peak[0] = max(peak[0], _status("VmRSS"))
            time.sleep(0.001)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        work()
    finally:
        running.clear()
        thread.join()
    return max(0, peak[0] - before)
