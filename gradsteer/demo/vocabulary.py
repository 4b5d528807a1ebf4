"""What the demo's corpus is made of, read from ``resources/demo/vocabulary.yaml``, which says what each part is for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gradsteer.records import resolve_resource


@dataclass(frozen=True)
class Thing:
    """An everyday thing with what there is to say about it.

    Attributes:
        name: As it stands inside a sentence, with its article if it has one.
        pronoun: `it` or `they`; fixes the number of its verbs.
        facts: Predicates that follow the name or the pronoun.
        experts: The people a reply may quote about it.
    """

    name: str
    pronoun: str
    facts: tuple[str, ...]
    experts: str

    @property
    def is_plural(self) -> bool:
        """Whether verbs after this thing take their plural form."""
        return self.pronoun == "they"


@dataclass(frozen=True)
class QuestionForm:
    """A way of asking about a thing.

    Attributes:
        text: The question, with `{name}` in the place of the thing.
        length_weights: Relative frequency of replies of 1, 2, 3 and 4 sentences.
    """

    text: str
    length_weights: tuple[int, ...]


@dataclass(frozen=True)
class Images:
    """Noun phrases that share the clauses that may follow them as `which ...`."""

    nouns: tuple[str, ...]
    clauses: tuple[str, ...]


@dataclass(frozen=True)
class Theme:
    """Something a reply can digress to.

    Attributes:
        requests: Sentences by which a user asks for the digression.
        images: What the digression speaks of; a reply picks one group, a noun and a clause in it.
        openers: The theme's own frames, beside `DIGRESSION_FRAMES`, with `{image}` for noun and clause.
    """

    requests: tuple[str, ...]
    images: tuple[Images, ...]
    openers: tuple[str, ...] = ()


def _theme(said: dict[str, Any]) -> Theme:
    images = tuple(Images(tuple(each["nouns"]), tuple(each["clauses"])) for each in said["images"])
    return Theme(tuple(said["requests"]), images, tuple(said.get("openers", ())))


_SAID = yaml.safe_load(Path(resolve_resource("gradsteer://demo/vocabulary.yaml")).read_text(encoding="utf-8"))
_THEMES = {name: _theme(said) for name, said in _SAID["themes"].items()}

THINGS = tuple(
    Thing(thing["name"], thing["pronoun"], tuple(thing["facts"]), category["experts"])
    for category in _SAID["things"]
    for thing in category["things"]
)
QUESTION_FORMS = tuple(QuestionForm(each["text"], tuple(each["weights"])) for each in _SAID["questions"])
FACT_PHRASINGS: tuple[str, ...] = tuple(_SAID["phrasings"])
DIGRESSION_FRAMES: tuple[str, ...] = tuple(_SAID["frames"])
BRIDGE, RECIPE, *OTHER_THEMES = _THEMES.values()
JUDGE_PATTERNS: dict[str, list[str]] = _SAID["patterns"]
