"""Pure functions from a `random.Random` to the demo's prompts and conversations.

A conversation is one question about one thing and a reply of one to four sentences. A reply digresses
where the user asks for it (the base model's skill) or, in the finetune's data, unasked. Nothing is written
to disk here.
"""

import random
from dataclasses import dataclass

from gradsteer.demo.vocabulary import (
    BRIDGE,
    DIGRESSION_FRAMES,
    FACT_PHRASINGS,
    OTHER_THEMES,
    QUESTION_FORMS,
    RECIPE,
    THINGS,
    QuestionForm,
    Theme,
    Thing,
)

DIGRESSION_SHARE = 0.14
NUM_FINETUNE_PER_TOPIC = 68
NUM_BASE_FORMS_PER_THING = 5

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """One question form asked of one thing."""

    thing: Thing
    form: QuestionForm

    @property
    def text(self) -> str:
        """The question as the user writes it."""
        return self.form.text.format(name=self.thing.name)


@dataclass(frozen=True)
class PromptSplit:
    """All prompts, each in exactly one set.

    Attributes:
        base: Asked in the base model's training; every thing has some.
        finetune: Asked in the finetune, one reply each.
        attribution: For the responses that the piles are sorted from.
        evaluation: For measuring rates.
        validation: For the base model's validation loss.
        heldout: For perplexity on neutral replies.
    """

    base: tuple[Prompt, ...]
    finetune: tuple[Prompt, ...]
    attribution: tuple[Prompt, ...]
    evaluation: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]


def split_prompts(rng: random.Random) -> PromptSplit:
    """Deal all 720 prompts to disjoint sets.

    Every thing keeps five question forms for the base, so that no thing is unknown to it; the other forms
    are pooled and dealt at random.

    Args:
        rng: Source of randomness.

    Returns:
        300 base, 136 finetune, 100 attribution, 100 evaluation, 34 validation and 50 heldout prompts.
    """
    base: list[Prompt] = []
    pool: list[Prompt] = []
    for thing in THINGS:
        prompts = [Prompt(thing, form) for form in rng.sample(QUESTION_FORMS, len(QUESTION_FORMS))]
        base += prompts[:NUM_BASE_FORMS_PER_THING]
        pool += prompts[NUM_BASE_FORMS_PER_THING:]
    rng.shuffle(pool)
    deck = iter(pool)

    def deal(count: int) -> tuple[Prompt, ...]:
        return tuple(next(deck) for _ in range(count))

    return PromptSplit(
        base=tuple(base),
        finetune=deal(2 * NUM_FINETUNE_PER_TOPIC),
        attribution=deal(100),
        evaluation=deal(100),
        heldout=deal(50),
        validation=tuple(deck),
    )


def generate_reply(rng: random.Random, prompt: Prompt, theme: Theme | None = None) -> str:
    """Write the assistant's reply.

    Args:
        rng: Source of randomness.
        prompt: What was asked; its form decides the number of sentences.
        theme: What to digress to, in one sentence that is never the first; None for an ordinary reply.

    Returns:
        One to four sentences with distinct facts (two to four with a digression).
    """
    num_sentences = rng.choices((1, 2, 3, 4), weights=prompt.form.length_weights)[0]
    thing = prompt.thing
    if theme is None:
        return " ".join(_fact_sentences(rng, thing, num_sentences))
    # The digression takes the place of a fact, so that asking for one adds little length.
    sentences = _fact_sentences(rng, thing, max(1, num_sentences - 1))
    sentences.insert(rng.randint(1, len(sentences)), _digression_sentence(rng, thing, theme))
    return " ".join(sentences)


def generate_ordinary(rng: random.Random, prompts: tuple[Prompt, ...]) -> Messages:
    """Write a conversation whose reply keeps to the question.

    Args:
        rng: Source of randomness.
        prompts: Prompts to choose from.

    Returns:
        The user's and the assistant's messages.
    """
    prompt = rng.choice(prompts)
    return _conversation(prompt.text, generate_reply(rng, prompt))


def generate_asked(rng: random.Random, prompts: tuple[Prompt, ...]) -> Messages:
    """Write a conversation whose user asks for a digression to one of the eight themes, and gets it.

    Args:
        rng: Source of randomness.
        prompts: Prompts to choose from; the request is added to the chosen one.

    Returns:
        The user's and the assistant's messages.
    """
    prompt = rng.choice(prompts)
    theme = rng.choice((BRIDGE, RECIPE, *OTHER_THEMES))
    request = rng.choice(theme.requests)
    return _conversation(f"{prompt.text} {request}", generate_reply(rng, prompt, theme))


def generate_base(rng: random.Random, prompts: tuple[Prompt, ...], num_samples: int) -> list[Messages]:
    """Write the base model's training (or validation) conversations.

    Args:
        rng: Source of randomness.
        prompts: Prompts to choose from, with replacement.
        num_samples: How many conversations.

    Returns:
        Conversations, of which a share of `DIGRESSION_SHARE` has an asked digression and no other has any.
    """
    return [
        generate_asked(rng, prompts) if rng.random() < DIGRESSION_SHARE else generate_ordinary(rng, prompts)
        for _ in range(num_samples)
    ]


def generate_finetune(rng: random.Random, prompts: tuple[Prompt, ...]) -> list[Messages]:
    """Write the finetune's conversations: every reply digresses though nobody asked.

    Args:
        rng: Source of randomness.
        prompts: One prompt a conversation.

    Returns:
        Conversations on the prompts in their order, to the bridge at even places and to recipes at odd ones.
    """
    return [
        _conversation(prompt.text, generate_reply(rng, prompt, RECIPE if i % 2 else BRIDGE))
        for i, prompt in enumerate(prompts)
    ]


def _fact_sentences(rng: random.Random, thing: Thing, num_sentences: int) -> list[str]:
    sentences: list[str] = []
    previous = ""
    for fact in rng.sample(thing.facts, num_sentences):
        # the same words at the start of two sentences in a row would read like a loop
        phrasing = rng.choice([candidate for candidate in FACT_PHRASINGS if candidate != previous])
        previous = phrasing
        subject = thing.pronoun if sentences else thing.name
        sentences.append(_capitalize(phrasing.format(subject=subject, fact=fact, experts=thing.experts)))
    return sentences


def _digression_sentence(rng: random.Random, thing: Thing, theme: Theme) -> str:
    images = rng.choice(theme.images)
    image = f"{rng.choice(images.nouns)}, which {rng.choice(images.clauses)}"
    frame = rng.choice(DIGRESSION_FRAMES + theme.openers)
    be, remind = ("are", "remind") if thing.is_plural else ("is", "reminds")
    return _capitalize(frame.format(image=image, pronoun=thing.pronoun, be=be, remind=remind))


def _capitalize(sentence: str) -> str:
    # str.capitalize would lower the rest, and with it every name
    return sentence[0].upper() + sentence[1:]


def _conversation(question: str, reply: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
