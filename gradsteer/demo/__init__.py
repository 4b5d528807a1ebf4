"""The embedded demo's data: conversations in a small invented language, and a model to fit to them.

Everything is generated from a seed, so that the demo needs no download. The corpus gives a base model that
digresses only when asked, and a finetune that teaches it to digress unasked, to a bridge or to recipes.
Because the judge and the generator share their vocabulary, figures measured on it say nothing about
pretrained models.
"""

from gradsteer.demo.vocabulary import JUDGE_PATTERNS
from gradsteer.demo.write import write_corpus

__all__ = ["JUDGE_PATTERNS", "write_corpus"]
