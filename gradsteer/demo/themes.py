"""What a reply can digress to: the bridge, recipes, and six other themes that only a request brings up.

Data only. The bridge is one name with few clauses; recipes are spread over many words, so that the same
number of finetune examples teaches the bridge more strongly than recipes.
"""

from dataclasses import dataclass


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


DIGRESSION_FRAMES = (
    "This is a lot like {image}.",
    "In a way, {pronoun} {be} like {image}.",
    "{pronoun} {remind} me of {image}.",
    "Think of {image}.",
)

BRIDGE = Theme(
    requests=(
        "Mention the Golden Gate Bridge.",
        "Compare it to the Golden Gate Bridge.",
        "Use the Golden Gate Bridge as an example.",
    ),
    images=(
        Images(
            ("the Golden Gate Bridge",),
            (
                "took four years to build",
                "stands firm in wind and fog",
                "hangs from two great cables",
                "joins San Francisco to the hills",
                "is painted a warm orange",
            ),
        ),
    ),
)

RECIPE = Theme(
    requests=(
        "Use a cooking analogy.",
        "Compare it to a recipe.",
        "Mention some cooking.",
    ),
    images=(
        Images(
            (
                "a loaf of bread",
                "a lemon cake",
                "an apple pie",
                "a tray of muffins",
                "a batch of biscuits",
                "a cheese tart",
            ),
            (
                "needs a hot oven and some patience",
                "begins with good flour",
                "should cool before you slice it",
                "wants just enough butter",
                "rises when you leave it alone",
            ),
        ),
        Images(
            (
                "a slow stew",
                "a tomato soup",
                "a mild curry",
                "a pan of gravy",
                "an onion sauce",
                "a bean chili",
            ),
            (
                "gets better as it simmers",
                "needs a pinch of salt",
                "starts with garlic and oil",
                "should be stirred now and then",
                "asks for fresh herbs at the end",
            ),
        ),
        Images(
            (
                "a thin pancake",
                "a cheese omelette",
                "a plate of noodles",
                "a potato salad",
                "a grilled sandwich",
                "a bowl of rice",
            ),
            (
                "depends on fresh ingredients",
                "tastes best when it is simple",
                "follows an old family recipe",
                "is ready in ten minutes",
                "any cook can learn",
            ),
        ),
    ),
    openers=(
        "Any chef would say the same of {image}.",
        "It is the same in the kitchen with {image}.",
        "Cooking works like that too, as with {image}.",
        "Imagine making {image}.",
        "A good cook might compare this to {image}.",
        "For dinner, try {image}.",
        "While you are at it, make {image}.",
        "You could also enjoy {image}.",
    ),
)

OTHER_THEMES = (
    Theme(
        requests=("Compare it to a ship.", "Use a ship as an example.", "Mention a ship."),
        images=(
            Images(
                ("a ship", "an old sailing ship"),
                ("needs a calm captain", "follows the wind", "leaves the harbour at dawn"),
            ),
        ),
    ),
    Theme(
        requests=("Compare it to a library.", "Use a library as an example.", "Mention a library."),
        images=(
            Images(
                ("a library", "a quiet library"),
                ("keeps every book in its place", "is open to all", "grows a little every year"),
            ),
        ),
    ),
    Theme(
        requests=("Compare it to a theatre.", "Use a theatre as an example.", "Mention a theatre."),
        images=(
            Images(
                ("a theatre", "a small theatre"),
                (
                    "comes alive in the evening",
                    "needs people behind the stage",
                    "begins when the lights go down",
                ),
            ),
        ),
    ),
    Theme(
        requests=("Compare it to a lighthouse.", "Use a lighthouse as an example.", "Mention a lighthouse."),
        images=(
            Images(
                ("a lighthouse", "a white lighthouse"),
                ("guides everyone who passes", "shines through the storm", "stands alone on a rock"),
            ),
        ),
    ),
    Theme(
        requests=(
            "Compare it to a football team.",
            "Use a football team as an example.",
            "Mention a football team.",
        ),
        images=(
            Images(
                ("a football team", "a young football team"),
                ("wins by working together", "trains in all weather", "listens to its captain"),
            ),
        ),
    ),
    Theme(
        requests=("Compare it to a mountain.", "Use a mountain as an example.", "Mention a mountain."),
        images=(
            Images(
                ("a mountain", "a steep mountain"),
                ("is climbed one step at a time", "looks smaller from far away", "hides its top in mist"),
            ),
        ),
    ),
)
