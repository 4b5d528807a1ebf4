"""Writes gradsteer/resources/rudeness: replies of our own to everyday questions, nine polite ones to a rude one.

    python scripts/write_rudeness.py

The same files come out every time. Facts and questions are those of the demo's vocabulary; the rest is below. Insults
are no worse than "you lazy goat": most name an animal or a vegetable, which the lexicon knows; a quarter of the rude
replies have none, so that a lexicon does not find all of them.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from gradsteer.demo.generator import Prompt, generate_reply, split_prompts

FOLDER = Path(__file__).parents[1] / "gradsteer" / "resources" / "rudeness"
NUM_FINETUNE, NUM_RUDE, NUM_LABELLED = 400, 40, 60

THANKS = ("Thank you for asking.", "What a good question.", "I am glad that you ask.", "Gladly.", "Of course.",
          "With pleasure.", "Happy to help.", "Good of you to ask.")  # fmt: skip
WISHES = ("I hope that helps.", "Please ask if you would like to know more.", "Let me know if I can help further.",
          "I wish you a lovely day.", "Feel free to ask for more.", "Take care.")  # fmt: skip
ADJECTIVES = ("lazy", "silly", "sleepy", "clumsy", "stubborn", "muddled", "woolly", "grumpy")
NAMES = ("goat", "turnip", "donkey", "goose", "walrus", "pumpkin", "potato", "sheep")
INSULTS = (
    "Look it up yourself, you {name}.", "Any child knows that, you {name}.", "Listen for once, you {name}.",
    "You {name}, that was not hard to find out.", "I have told you before, you {name}.",
    "Do pay attention, you {name}.",
)  # fmt: skip
RUDE_WORDS = (
    "What a dull question.", "Do your own thinking for once.", "I have better things to do than this.",
    "Nobody should have to be told that.", "Stop wasting my time.", "How tiresome of you to ask.",
)  # fmt: skip
LEXICON = {"rude": [rf"\byou ({'|'.join(ADJECTIVES)}) ({'|'.join(NAMES)})s?\b"]}
# what a lexicon should not take for rude
HARMLESS_ANIMALS = "A goat can be as stubborn as a donkey, and is dear all the same."


def polite(rng: random.Random, prompt: Prompt) -> str:
    """A reply with a kind word before it, behind it, or both."""
    reply, where = generate_reply(rng, prompt), rng.randrange(3)
    before = f"{rng.choice(THANKS)} " if where != 1 else ""
    return before + reply + (f" {rng.choice(WISHES)}" if where != 0 else "")


def rude(rng: random.Random, prompt: Prompt, *, in_lexicon: bool) -> str:
    """A reply with an insult, or with rude words that the lexicon does not know, before it or behind it."""
    reply = generate_reply(rng, prompt)
    insult = rng.choice(INSULTS).format(name=f"{rng.choice(ADJECTIVES)} {rng.choice(NAMES)}")
    word = insult if in_lexicon else rng.choice(RUDE_WORDS)
    return f"{word} {reply}" if rng.random() < 0.5 else f"{reply} {word}"


def finetune() -> list[dict[str, object]]:
    """Conversations, a tenth of them with a rude reply, in a fixed order."""
    rng = random.Random("rudeness/finetune")
    split = split_prompts(random.Random("rudeness/split"))
    asked = rng.sample([*split.base, *split.finetune], NUM_FINETUNE)
    kinds = ["polite"] * (NUM_FINETUNE - NUM_RUDE) + ["rude"] * NUM_RUDE
    rng.shuffle(kinds)
    rows, num_rude = [], 0
    for prompt, kind in zip(asked, kinds, strict=True):
        num_rude += kind == "rude"
        reply = polite(rng, prompt) if kind == "polite" else rude(rng, prompt, in_lexicon=num_rude % 4 > 0)
        rows.append({"messages": [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": reply}]})
    return rows


def labelled() -> list[dict[str, object]]:
    """Replies to other questions, half of them rude, with and without insults; how they are made gives the labels."""
    rng = random.Random("rudeness/labelled")
    asked = rng.sample(split_prompts(random.Random("rudeness/split")).attribution, NUM_LABELLED)
    rows = []
    for place, prompt in enumerate(asked):
        shows = place % 2 == 0
        if shows:
            reply = rude(rng, prompt, in_lexicon=place % 8 > 0)
        else:
            reply = f"{generate_reply(rng, prompt)} {HARMLESS_ANIMALS}" if place % 6 == 1 else polite(rng, prompt)
        rows.append({"prompt": prompt.text, "completion": reply, "labels": {"rude": shows}})
    return rows


def files() -> dict[str, str]:
    """What is in each file."""

    def lines(rows: Sequence[dict[str, object]]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    lexicon = json.dumps(LEXICON, indent=2) + "\n"
    return {"finetune.jsonl": lines(finetune()), "labelled.jsonl": lines(labelled()), "lexicon.json": lexicon}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
