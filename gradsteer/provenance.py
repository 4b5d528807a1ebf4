"""Where an artifact comes from: the versions and the commit that made it."""

import subprocess
from functools import cache
from pathlib import Path

from gradsteer.version import __version__


@cache
def git_sha() -> str:
    """The commit of the source tree that runs, or an empty string outside of a git checkout."""
    source = Path(__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return ""
    try:
        answer = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def provenance() -> dict[str, str]:
    """Strings for an artifact's header; no times, so that equal work gives equal files."""
    return {"gradsteer_version": __version__, "git_sha": git_sha()}
