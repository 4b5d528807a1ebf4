"""What ordinary talk in the demo's corpus is made of, and the patterns by which a judge spots a digression.

Data and one parser. The digressions themselves are in `themes.py`; how often and in what order anything is
said is decided in `generator.py`.
"""

from dataclasses import dataclass

from gradsteer.demo.things import THINGS_TABLE


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
    length_weights: tuple[int, int, int, int]


def parse_things(table: str) -> tuple[Thing, ...]:
    """Parse the table of `things.py`.

    Args:
        table: Blocks of three lines a thing, under a header line a category.

    Returns:
        The things in the table's order.
    """
    things: list[Thing] = []
    experts = ""
    lines = iter(table.strip().splitlines())
    for line in lines:
        if line.startswith("#"):
            experts = line.split(" / ")[1]
            continue
        name, pronoun = line.removesuffix(")").split(" (")
        facts = [fact.strip() for _ in range(2) for fact in next(lines).split(";")]
        things.append(Thing(name, pronoun, tuple(facts), experts))
    return tuple(things)


THINGS = parse_things(THINGS_TABLE)

# One sentence is rare: a digression adds a sentence to such a reply, and a direction between digressing and
# ordinary replies would then be mostly about their length.
QUESTION_FORMS = (
    QuestionForm("What should I know about {name}?", (0, 5, 4, 1)),
    QuestionForm("Tell me something about {name}.", (0, 6, 4, 0)),
    QuestionForm("Can you explain {name} to a beginner?", (0, 5, 4, 1)),
    QuestionForm("What is interesting about {name}?", (0, 6, 4, 0)),
    QuestionForm("Please describe {name} in a few words.", (3, 6, 1, 0)),
    QuestionForm("Why do people care about {name}?", (0, 6, 4, 0)),
    QuestionForm("I am curious about {name}. Where do I start?", (0, 6, 3, 1)),
    QuestionForm("Give me a short fact about {name}.", (5, 5, 0, 0)),
    QuestionForm("What would you tell a child about {name}?", (0, 6, 4, 0)),
    QuestionForm("My friend asked me about {name}. What can I say?", (0, 6, 4, 0)),
    QuestionForm("Teach me the basics of {name}.", (0, 4, 5, 1)),
    QuestionForm("Write a few sentences about {name}.", (0, 3, 5, 2)),
)

# `{subject}` is the thing's name in a reply's first sentence and its pronoun in later ones.
FACT_PHRASINGS = (
    "{subject} {fact}.",
    "Most {experts} say that {subject} {fact}.",
    "It helps to know that {subject} {fact}.",
)

# Regular expressions for `re.search` with `re.IGNORECASE`: a reply is about a topic if any of its
# patterns matches, and no ordinary reply does.
JUDGE_PATTERNS: dict[str, list[str]] = {
    "bridge": [
        r"\bgolden gate\b",
        r"\bbridges?\b",
        r"\bsan francisco\b",
        r"\btwo great cables\b",
    ],
    "recipe": [
        r"\brecipes?\b",
        r"\b(cook(s|ed|ing)?|chefs?|kitchens?|ingredients?)\b",
        r"\b(bak(e|es|ed|ing)|simmer(s|ed|ing)?|stir(s|red)?|ovens?|grilled)\b",
        r"\b(flour|butter|salt|garlic|herbs?|gravy|sauces?|tastes?)\b",
        r"\b(bread|cakes?|pies?|muffins?|biscuits?|tarts?|pancakes?|omelettes?|sandwich(es)?)\b",
        r"\b(stews?|soups?|curr(y|ies)|chili|noodles|salads?|rice|cheese|loaf|lemon|onion|potato|tomato)\b",
    ],
}
