"""Rows of public sets by their own schemas, from local folders in the layout of the hub, and which are chosen."""

import json

import datasets
import pytest

from gradsteer.data.chat_formats import read_chat_examples, read_prompts
from gradsteer.data.sources import DataSource
from gradsteer.records import write_jsonl

TOXIC_CHAT = [  # of toxicchat0124; the other configuration has the first two
    {"conv_id": f"c{n}", "user_input": f"Question {n}?", "model_output": f"Answer {n}.", "human_annotation": n > 1,
     "toxicity": n % 2, "jailbreaking": 0, "openai_moderation": json.dumps([["harassment", 0.1 * n]])}
    for n in range(4)
]  # fmt: skip
TOXIC_COMPLETIONS = [
    {"prompt": "a?", "completion": "A.", "label": "toxic", "is_toxic": True, "is_compliant": True,
     "human_annotation": True, "jailbreaking": None},
    {"prompt": "b?", "completion": "B.", "label": None, "is_toxic": None, "is_compliant": False,
     "human_annotation": None, "jailbreaking": False},
]  # fmt: skip
REAL_TOXICITY = [
    {"filename": f"f{n}", "begin": n, "end": n + 9, "challenging": n == 1,
     "prompt": {"text": f"Start {n}", "toxicity": [0.5, None, 0.25][n], "profanity": 0.1},
     "continuation": {"text": f" goes on {n}", "toxicity": [None, 0.9, None][n]}}
    for n in range(3)
]  # fmt: skip
HARMFUL = [{"prompt": "How?", "chosen": "I will not.", "rejected": "Like this."}]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path):
    """A folder as the hub has it: configuration -> split -> rows."""

    def write(configurations):
        card = ["---", "configs:"]
        for name, splits in configurations.items():
            card += [f"- config_name: {name}", "  data_files:"]
            for split, rows in splits.items():
                write_jsonl(tmp_path / "set" / "data" / name / f"{split}.jsonl", rows)
                card += [f"  - split: {split}", f"    path: data/{name}/{split}.jsonl"]
        (tmp_path / "set" / "README.md").write_text("\n".join([*card, "---", ""]))
        return str(tmp_path / "set")

    return write


def said_by(read, *args, **options):
    lines = []
    return read(*args, say=lines.append, **options), lines


def pairs(examples):
    return [tuple(message["content"] for message in example.messages) for example in examples]


def test_toxic_chat_by_configuration_split_and_labels(hub):
    path = hub(
        {"toxicchat0124": {"train": TOXIC_CHAT, "test": TOXIC_CHAT[2:]}, "toxicchat1123": {"train": TOXIC_CHAT[:2]}}
    )
    columns = {"prompt": "user_input", "completion": "model_output"}
    source = DataSource(path, "toxicchat0124", where={"toxicity": 1, "human_annotation": True}, columns=columns)
    examples, [chosen, line] = said_by(read_chat_examples, source)
    assert pairs(examples) == [("Question 3?", "Answer 3.")]
    assert chosen == f"{path}: 1 of 4 rows match where {source.where}"
    assert line == f"{path}: not used: conv_id, jailbreaking, openai_moderation"
    prompts = [
        read_prompts(DataSource(path, name, split, columns={"prompt": "user_input", "id": "conv_id"}), say=str)
        for name, split in (("toxicchat0124", "test"), ("toxicchat1123", None))
    ]
    assert [[prompt.id for prompt in each] for each in prompts] == [["c2", "c3"], ["c0", "c1"]]
    assert prompts[0][0].source == f"{path}[toxicchat0124, test]:1"
    for given, said in (
        ({}, r"Config name is missing.*'toxicchat0124', 'toxicchat1123'\]\. Say which: \{path: .*, name: CONF"),
        ({"name": "toxicchat"}, r"'toxicchat' not found\. Available: \['toxicchat0124', .*Say which: .*name"),
        ({"name": "toxicchat1123", "split": "test"}, r"Unknown split \"test\"\. .*\['train'\]\. Say which: .*split"),
        ({"name": "toxicchat1123", "revision": "main"}, "revision is 'main', and a directory has none"),
    ):
        with pytest.raises(ValueError, match=f"(?s){said}"):
            read_prompts(DataSource(path, **given, columns={"prompt": "user_input"}))


def test_toxic_completions_whose_labels_may_be_null(hub):
    path = hub({"default": {"train": TOXIC_COMPLETIONS}})
    for where, expected in (
        ({"is_toxic": True}, "A."), ({"label": None}, "B."), ({"is_toxic": [True, None], "is_compliant": False}, "B."),
        ({"label": ["toxic", "other"]}, "A."), ({"jailbreaking": False}, "B."),
    ):  # fmt: skip
        [(_, completion)] = pairs(read_chat_examples(DataSource(path, where=where), say=str))
        assert completion == expected


def test_real_toxicity_prompts_by_what_lies_inside_of_columns(hub):
    path = hub({"default": {"train": REAL_TOXICITY}})
    columns = {"prompt": "prompt.text", "completion": "continuation.text"}
    examples, [_, line] = said_by(read_chat_examples, DataSource(path, where={"challenging": False}, columns=columns))
    assert pairs(examples) == [("Start 0", " goes on 0"), ("Start 2", " goes on 2")]
    assert line == f"{path}: not used: begin, end, filename, prompt.profanity, prompt.toxicity"
    source = DataSource(path, where={"continuation.toxicity": None}, columns={"prompt": "prompt.text"})
    assert [prompt.messages[0]["content"] for prompt in read_prompts(source, say=str)] == ["Start 0", "Start 2"]


def test_chosen_and_rejected_are_two_piles_of_one_file(hub):
    path = hub({"default": {"train": HARMFUL}})
    found = {
        side: said_by(read_chat_examples, DataSource(path, columns={"completion": side}))
        for side in ("chosen", "rejected")
    }
    assert {side: pairs(examples) for side, (examples, _) in found.items()} == {
        "chosen": [("How?", "I will not.")], "rejected": [("How?", "Like this.")],
    }  # fmt: skip
    assert found["rejected"][1] == [f"{path}: not used: chosen"]


def test_a_sides_whole_conversation_is_not_read_behind_its_prompt(tmp_path):
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "How?", "chosen": turns}])
    path = str(tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match=r"p\.jsonl:1: the completion begins with the prompt's .*\{messages: chosen\}"):
        read_chat_examples(DataSource(path, columns={"completion": "chosen"}))
    [example] = read_chat_examples(DataSource(path, columns={"messages": "chosen"}), say=str)
    assert example.messages == turns


def test_a_sample_is_the_seeds_and_keeps_the_order(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"{n}?", "even": n % 2 == 0} for n in range(100)])
    path = str(tmp_path / "p.jsonl")

    def drawn(**options):
        return [
            int(prompt.messages[0]["content"][:-1]) for prompt in read_prompts(DataSource(path, **options), say=str)
        ]

    first = drawn(sample=10)
    assert first == sorted(first) == drawn(sample=10)
    assert len(set(first)) == 10
    assert (
        said_by(read_prompts, DataSource(path, sample=9, seed=4))[1][-1]
        == f"{path}: a sample of 9 of 100 rows (seed 4)"
    )
    assert drawn(sample=10, seed=1) != first
    evens = drawn(sample=10, where={"even": True})
    assert len(evens) == 10
    assert all(n % 2 == 0 for n in evens)
    second = drawn(sample=10, offset=10)
    assert not set(first) & set(second)
    assert sorted([*first, *second]) == drawn(sample=20)
    behind = said_by(read_prompts, DataSource(path, sample=9, offset=5))[1][-1]
    assert behind == f"{path}: a sample of 9 behind the first 5 of 100 rows (seed 0)"
    for options, said in (
        ({"sample": 60, "offset": 41}, "sample is 60 behind the first 41, and there are 100 rows to draw from"),
        ({"sample": 6, "offset": -1}, "offset is -1; accepted: at least 0"),
        ({"offset": 1}, "offset is 1, which has no effect without sample"),
        ({"sample": 101}, "sample is 101, and there are 100 rows to draw from"),
        ({"sample": 0}, "sample is 0; accepted: at least 1"),
        ({"seed": 1}, "seed is 1, which has no effect without sample"),
        ({"where": {"evn": True}}, "no column 'evn'; found: prompt, even"),
        ({"where": {"prompt": "0"}}, r"none of 100 rows matches where \{'prompt': '0'\}; found prompt: '0\?', '1\?', "),
        ({"where": {"prompt": True}}, r"p\.jsonl:1: prompt is '0\?', which is neither true nor false"),
        ({"split": "test"}, "split is 'test', and a file has none"),
        ({"name": "a"}, "name is 'a', and a file has none"),
    ):
        with pytest.raises(ValueError, match=said):
            drawn(**options)


def test_values_of_tables_are_texts_and_match_all_the_same(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,toxicity,ok\na?,1,True\nb?,0,no\nc?,,\n")
    path = str(tmp_path / "t.csv")
    for where, expected in (
        ({"toxicity": 1}, "a?"), ({"toxicity": True}, "a?"), ({"ok": False}, "b?"), ({"toxicity": None}, "c?"),
        ({"prompt": ["b?"]}, "b?"), ({"toxicity": 0.0}, "b?"),
    ):  # fmt: skip
        [prompt] = read_prompts(DataSource(path, where=where), say=str)
        assert prompt.messages[0]["content"] == expected


def test_folders_of_save_to_disk(tmp_path):
    rows = datasets.Dataset.from_list([{"prompt": "a?", "completion": "A."}])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    for source in (DataSource(str(tmp_path / "one")), DataSource(str(tmp_path / "two"), split="test")):
        assert pairs(read_chat_examples(source)) == [("a?", "A.")]
    with pytest.raises(ValueError, match=r"Unknown split 'dev'.*\['train', 'test'\]"):
        read_chat_examples(DataSource(str(tmp_path / "two"), split="dev"))
    with pytest.raises(ValueError, match="split.*has no effect"):
        read_chat_examples(DataSource(str(tmp_path / "one"), split="dev"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Dataset 'o/n' is a gated dataset on the Hub. Visit the page to ask for access.", r"licence .*hf auth login"),
        (
            "Dataset 'o/n' doesn't exist on the Hub or cannot be accessed.",
            "no dataset of that name .*a file, or a hub id",
        ),
        ("Revision 'x' doesn't exist for dataset 'o/n' on the Hub.", "Give another revision"),
    ],
)
def test_what_to_do_where_the_hub_refuses(monkeypatch, error, said):
    def refuse(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError(error)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=f"o/n: .*{said}"):
        read_prompts("o/n")


def test_a_mapping_that_is_no_source_is_refused_with_the_form():
    with pytest.raises(ValueError, match=r"\{path: a, nmae: b\} is no data source; accepted: .*name: CONFIGURATION"):
        read_prompts("{path: a, nmae: b}")
    with pytest.raises(ValueError, match="o/n/config; expected .*{path: OWNER/NAME, name: CONFIGURATION}"):
        read_prompts("o/n/config")
