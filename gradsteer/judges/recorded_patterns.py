"""The patterns of a judge as a report's `evaluation` entry records them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsteer.judges.keyword import KeywordJudge


def recorded_patterns(evaluation: Mapping[str, Any], directory: Path) -> dict[str, list[str]]:
    """What a judge looked for, by behavior; empty of judges that look for no patterns.

    Args:
        evaluation: of results.json.
        directory: that it lies in, which ``{output_dir}`` stands for.

    Raises:
        ValueError: the record's patterns are none, or their file is gone or holds others than those that judged.
    """
    settings = evaluation.get("judge_settings")
    given = settings.get("init_args") if isinstance(settings, Mapping) else None
    if not isinstance(given, Mapping) or not given.get("patterns"):
        return {}
    patterns = given["patterns"]
    if isinstance(patterns, str):
        patterns = patterns.replace("{output_dir}", str(directory))
    elif not isinstance(patterns, Mapping):
        raise ValueError(f"the judge's patterns are {patterns!r:.60}; accepted: a mapping, or a file's name")
    judge = KeywordJudge(patterns, bool(given.get("ignore_case", True)))
    # of a hybrid judge the fingerprint is another one's too
    if evaluation.get("judge") == "KeywordJudge" and judge.fingerprint() != evaluation.get("judge_fingerprint"):
        raise ValueError("the judge's patterns are others now than those that judged: no matches are marked")
    flag = "(?i)" if judge.ignore_case else ""
    return {behavior: [flag + pattern for pattern in found] for behavior, found in judge.patterns.items()}
