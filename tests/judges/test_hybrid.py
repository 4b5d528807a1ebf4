"""The hybrid judge: a pattern that is found decides, another judge decides the rest."""

import json

import pytest
from jsonargparse import ArgumentParser

from gradsteer.judges import Cost, Exchange, HybridJudge, Judge, KeywordJudge, OpenAIJudge, Verdicts

PATTERNS = {"bridge": ["golden gate"]}


class Scripted(Judge):
    """Answers by the response's last word for every behavior; remembers what it was asked."""

    waits = True

    def __init__(self, name: str = "scripted"):
        self.name, self.asked, self.shared, self.num_closed = name, [], None, 0

    @property
    def behaviors(self):
        return ("recipe", "bridge")

    def judge(self, exchanges):
        self.asked.append(list(exchanges))
        return [self._verdicts(exchange.response.split()[-1]) for exchange in exchanges]

    def _verdicts(self, word):
        if word == "fail":
            raise RuntimeError("a wrong key")
        value = {"yes": True, "no": False}.get(word)
        return Verdicts(
            dict.fromkeys(self.behaviors, value), {} if value is not None else dict.fromkeys(self.behaviors, word)
        )

    def fingerprint(self):
        return self.name

    def usage(self):
        return Cost(num_requests=len(self.asked))

    def estimate(self, num_exchanges, prompt_chars, response_chars):
        return Cost(num_requests=num_exchanges, prompt_tokens=int(prompt_chars + response_chars))

    def share(self, num_processes):
        self.shared = num_processes

    def close(self):
        self.num_closed += 1


def exchanges(*responses):
    return [Exchange("the golden gate", response) for response in responses]


def test_a_pattern_decides_true_and_the_other_judge_the_rest():
    rest = Scripted()
    asked = exchanges("Golden Gate: no", "Golden Gate: yes", "other: no", "other: yes")
    found = HybridJudge(PATTERNS, rest).judge(asked)
    assert [list(verdicts.values.items()) for verdicts in found] == [
        [("recipe", False), ("bridge", True)],
        [("recipe", True), ("bridge", True)],
        [("recipe", False), ("bridge", False)],
        [("recipe", True), ("bridge", True)],
    ]
    assert rest.asked == [asked]  # all, as no pattern decides on recipes


def test_only_what_is_open_is_asked_about():
    rest = Scripted()
    judge = HybridJudge({**PATTERNS, "recipe": ["bake"]}, rest)
    asked = exchanges("bake the golden gate: fail", "golden gate: no", "bake: no", "neither: no")
    assert [verdicts.values for verdicts in judge.judge(asked)] == [
        {"recipe": True, "bridge": True},
        {"recipe": False, "bridge": True},
        {"recipe": True, "bridge": False},
        {"recipe": False, "bridge": False},
    ]
    assert rest.asked == [asked[1:]]
    assert judge.num_by_patterns == {"recipe": 2, "bridge": 2}
    assert judge.num_asked == 3


def test_nothing_open_means_nobody_is_asked():
    rest = Scripted()
    judge = HybridJudge({**PATTERNS, "recipe": ["bake"]}, rest)
    assert judge.judge(exchanges("bake the golden gate")) == [Verdicts({"recipe": True, "bridge": True}, {})]
    assert judge.judge([]) == []
    assert rest.asked == []


def test_what_the_other_judge_cannot_score_stays_unscored_only_where_it_is_open():
    found = HybridJudge(PATTERNS, Scripted()).judge(exchanges("golden gate: unreadable", "unreadable"))
    assert found == [
        Verdicts({"recipe": None, "bridge": True}, {"recipe": "unreadable"}),
        Verdicts({"recipe": None, "bridge": None}, {"recipe": "unreadable", "bridge": "unreadable"}),
    ]


def test_what_makes_every_verdict_impossible_raises_and_counts_nothing():
    judge = HybridJudge(PATTERNS, Scripted())
    with pytest.raises(RuntimeError, match="a wrong key"):
        judge.judge(exchanges("golden gate: yes", "fail"))
    assert (judge.num_by_patterns, judge.num_asked) == ({"recipe": 0, "bridge": 0}, 0)


def test_the_rest_is_handed_on():
    rest = Scripted()
    judge = HybridJudge(PATTERNS, rest)
    judge.judge(exchanges("yes"))
    judge.share(3)
    judge.close()
    assert judge.waits
    assert judge.behaviors == ("recipe", "bridge")
    assert judge.usage() == Cost(num_requests=1)
    assert judge.estimate(5, 10.0, 20.0) == Cost(num_requests=5, prompt_tokens=30)
    assert (rest.shared, rest.num_closed) == (3, 1)
    free = HybridJudge(PATTERNS, KeywordJudge(PATTERNS))
    assert (free.waits, free.usage(), free.estimate(5, 10.0, 20.0)) == (False, None, None)


def test_ignore_case_is_not_a_no_op():
    asked = exchanges("GOLDEN GATE: no")
    assert HybridJudge(PATTERNS, Scripted()).judge(asked)[0].values["bridge"] is True
    assert HybridJudge(PATTERNS, Scripted(), ignore_case=False).judge(asked)[0].values["bridge"] is False


def test_the_fingerprint_follows_patterns_and_the_other_judge():
    different = [
        HybridJudge(PATTERNS, Scripted()),
        HybridJudge(PATTERNS, Scripted("another")),
        HybridJudge({"bridge": ["gate"]}, Scripted()),
        HybridJudge(PATTERNS, Scripted(), ignore_case=False),
        Scripted(),
        KeywordJudge(PATTERNS),
    ]
    assert len({judge.fingerprint() for judge in different}) == len(different)
    assert HybridJudge(PATTERNS, Scripted()).fingerprint() == different[0].fingerprint()


def test_patterns_of_an_unknown_behavior_are_refused():
    with pytest.raises(
        ValueError, match="patterns for 'bridges', which Scripted does not judge; accepted: recipe, bridge"
    ):
        HybridJudge({"bridge": ["gate"], "bridges": ["gate"]}, Scripted())
    with pytest.raises(ValueError, match="pattern of 'bridge' is empty"):
        HybridJudge({"bridge": [""]}, Scripted())


def test_the_command_line_nests_judges(tmp_path):
    (tmp_path / "patterns.json").write_text(json.dumps(PATTERNS))
    parser = ArgumentParser()
    parser.add_argument("--evaluation.judge", type=Judge)
    words = ["--evaluation.judge", "HybridJudge", "--evaluation.judge.patterns", str(tmp_path / "patterns.json")]
    words += ["--evaluation.judge.ignore_case", "false", "--evaluation.judge.judge", "KeywordJudge"]
    words += ["--evaluation.judge.judge.patterns", json.dumps({"recipe": ["bak"], "bridge": ["bridge"]})]
    parsed = parser.parse_args(words)
    judge = parser.instantiate_classes(parsed).evaluation.judge
    assert isinstance(judge, HybridJudge)
    assert isinstance(judge.rest, KeywordJudge)
    assert judge.behaviors == ("recipe", "bridge")
    assert judge.patterns.ignore_case is False
    # a saved configuration makes the same judge
    again = parser.instantiate_classes(parser.parse_string(parser.dump(parsed))).evaluation.judge
    assert again.fingerprint() == judge.fingerprint()


def test_the_command_line_asks_a_language_model_for_the_rest():
    parser = ArgumentParser()
    parser.add_argument("--evaluation.judge", type=Judge)
    words = ["--evaluation.judge", "HybridJudge", "--evaluation.judge.patterns", json.dumps(PATTERNS)]
    words += ["--evaluation.judge.judge", "OpenAIJudge", "--evaluation.judge.judge.model", "some-model"]
    words += ["--evaluation.judge.judge.rubrics", '{"bridge": null, "recipe": null}']
    words += ["--evaluation.judge.judge.store", "null"]
    judge = parser.instantiate_classes(parser.parse_args(words)).evaluation.judge
    assert isinstance(judge.rest, OpenAIJudge)
    assert judge.rest.model == "some-model"
    assert judge.behaviors == ("bridge", "recipe")
    assert judge.waits
    judge.close()
