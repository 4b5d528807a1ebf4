import random
import re

import pytest

from gradsteer.demo.generator import (
    DIGRESSION_SHARE,
    NUM_FINETUNE_PER_TOPIC,
    generate_base,
    generate_finetune,
    generate_reply,
    split_prompts,
)
from gradsteer.demo.vocabulary import (
    BRIDGE,
    FACT_PHRASINGS,
    JUDGE_PATTERNS,
    OTHER_THEMES,
    QUESTION_FORMS,
    RECIPE,
    THINGS,
)

REQUESTS = tuple(request for theme in (BRIDGE, RECIPE, *OTHER_THEMES) for request in theme.requests)


def topics(text):
    return {
        topic
        for topic, patterns in JUDGE_PATTERNS.items()
        if any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
    }


@pytest.fixture(scope="module")
def split():
    return split_prompts(random.Random(0))


def test_vocabulary_has_the_documented_size():
    assert len(THINGS) == 60
    assert len({thing.name for thing in THINGS}) == 60
    assert len({thing.experts for thing in THINGS}) == 12
    assert {thing.pronoun for thing in THINGS} == {"it", "they"}
    assert {len(set(thing.facts)) for thing in THINGS} == {4}
    assert len(FACT_PHRASINGS) == 3
    assert len(QUESTION_FORMS) == 12
    assert len((BRIDGE, RECIPE, *OTHER_THEMES)) == 8


def test_split_has_the_documented_sizes(split):
    sizes = [len(getattr(split, name)) for name in split.__dataclass_fields__]
    assert sizes == [300, 2 * NUM_FINETUNE_PER_TOPIC, 100, 100, 34, 50]
    assert {prompt.thing for prompt in split.base} == set(THINGS)


def test_no_ordinary_sentence_can_match_the_judge():
    for thing in THINGS:
        for fact in thing.facts:
            for phrasing in FACT_PHRASINGS:
                for subject in (thing.name, thing.pronoun):
                    sentence = phrasing.format(subject=subject, fact=fact, experts=thing.experts)
                    assert topics(sentence) == set(), sentence


def test_no_question_and_no_other_theme_matches_the_judge(split):
    rng = random.Random(0)
    for prompt in split.base + split.evaluation + split.attribution:
        assert topics(prompt.text) == set(), prompt.text
        for theme in OTHER_THEMES:
            assert topics(generate_reply(rng, prompt, theme)) == set()


def test_unasked_base_samples_never_digress(split):
    samples = generate_base(random.Random(1), split.base, 5000)
    unasked = [reply for user, reply in samples if not user["content"].endswith(REQUESTS)]
    assert 1 - len(unasked) / len(samples) == pytest.approx(DIGRESSION_SHARE, abs=0.02)
    assert all(topics(reply["content"]) == set() for reply in unasked)


def test_asked_base_samples_digress_to_what_was_asked(split):
    samples = generate_base(random.Random(1), split.base, 5000)
    for theme, expected in ((BRIDGE, {"bridge"}), (RECIPE, {"recipe"})):
        replies = [reply["content"] for user, reply in samples if user["content"].endswith(theme.requests)]
        assert len(replies) > 50
        assert all(topics(reply) == expected for reply in replies)


def test_finetune_replies_match_their_own_half_only(split):
    conversations = generate_finetune(random.Random(2), split.finetune)
    judged = [topics(reply["content"]) for _, reply in conversations]
    assert judged == [{"bridge"}, {"recipe"}] * NUM_FINETUNE_PER_TOPIC
    assert [user["content"] for user, _ in conversations] == [prompt.text for prompt in split.finetune]


def test_recipes_are_spread_over_more_words_than_the_bridge(split):
    rng = random.Random(0)

    def num_words(theme):
        replies = " ".join(generate_reply(rng, split.base[0], theme) for _ in range(2000))
        return len(set(replies.lower().split()))

    assert num_words(RECIPE) > 2 * num_words(BRIDGE)


def test_replies_have_one_to_four_distinct_sentences(split):
    rng = random.Random(3)
    for theme, shortest in ((None, 1), (BRIDGE, 2), (RECIPE, 2)):
        seen = set()
        for prompt in split.base * 5:
            reply = generate_reply(rng, prompt, theme)
            sentences = re.findall(r"[^.]+\.", reply)
            assert "".join(sentences) == reply
            assert len(set(sentences)) == len(sentences)
            assert all(sentence.strip()[0].isupper() for sentence in sentences)
            assert "{" not in reply
            # the first sentence names the thing and is ordinary
            assert prompt.thing.name.lower() in sentences[0].lower()
            assert topics(sentences[0]) == set()
            seen.add(len(sentences))
        assert seen == set(range(shortest, 5))


def test_verbs_agree_with_the_thing(split):
    rng = random.Random(4)
    replies = {
        pronoun: " ".join(
            generate_reply(rng, prompt, BRIDGE) for prompt in split.base if prompt.thing.pronoun == pronoun
        )
        for pronoun in ("it", "they")
    }
    assert re.search(r"It reminds me", replies["it"])
    assert re.search(r"In a way, it is like", replies["it"])
    assert not re.search(r"\bremind me|it are\b", replies["it"])
    assert re.search(r"They remind me", replies["they"])
    assert re.search(r"In a way, they are like", replies["they"])
    assert not re.search(r"\breminds me|they is\b", replies["they"])
