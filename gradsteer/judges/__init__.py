"""Judges: what a response is asked, and what came of it.

All are here, so that the command line knows them by their short names; what a judge needs beyond Python itself is
imported when it is first asked.
"""

from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.judges.costs import Cost
from gradsteer.judges.hybrid import HybridJudge
from gradsteer.judges.keyword import KeywordJudge
from gradsteer.judges.local import LocalJudge
from gradsteer.judges.openai import OpenAIJudge
from gradsteer.judges.store import VerdictStore
from gradsteer.judges.stored import Answer, StoredJudge

__all__ = [
    "Answer",
    "Cost",
    "Exchange",
    "HybridJudge",
    "Judge",
    "KeywordJudge",
    "LocalJudge",
    "OpenAIJudge",
    "StoredJudge",
    "VerdictStore",
    "Verdicts",
]
