"""Judges: what a response is asked, and what came of it."""

from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.judges.keyword import KeywordJudge

__all__ = ["Exchange", "Judge", "KeywordJudge", "Verdicts"]
