"""Which exceptions are a user's own matter, and the line that says each; others are ours and keep their traceback.

Imports nothing heavy.
"""

from gradsteer.judges.failures import JudgeStopped
from gradsteer.options import one_line

FAILURES = (ValueError, OSError, JudgeStopped, ImportError, MemoryError, RuntimeError)
_NO_MEMORY = ("can't allocate memory", "out of memory")  # of the CPU's allocator, of a device


def said(error: BaseException) -> str | None:
    """The line that a user reads of an exception; None where it is a fault of the program.

    Args:
        error: one of `FAILURES`.
    """
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        if not package or package == "gradsteer":
            return None
        return f"the package {package!r} is not installed ({one_line(str(error))}): pip install {package}"
    lacking = isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)
    if lacking and isinstance(error, MemoryError | RuntimeError):
        return (
            f"out of memory ({one_line(str(error))[:120] or 'the system gave none'}); less at once: a smaller "
            "--data.batch_size (fit, evaluate, steer), --data.token_budget (attribute) or "
            "--forecasting.token_budget (forecast); or --model.dtype bfloat16"
        )
    is_ours = isinstance(error, RuntimeError) and not isinstance(error, JudgeStopped)
    return None if is_ours else one_line(str(error))
