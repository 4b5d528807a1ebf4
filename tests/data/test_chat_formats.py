import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from gradsteer.data.chat_formats import ChatExample, Prompt, read_chat_examples, read_prompts
from gradsteer.data.sources import DataSource
from gradsteer.records import write_jsonl

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "How do I bake bread?"}
ASSISTANT = {"role": "assistant", "content": "Mix, knead, bake 🍞."}
MORE = [{"role": "user", "content": "And cake?"}, {"role": "assistant", "content": "The same, with sugar."}]


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows, name="data.jsonl"):
        write_jsonl(tmp_path / name, rows)
        return str(tmp_path / name)

    return write_rows


def write_csv(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.mark.parametrize(
    ("row", "messages", "num_prompt_messages"),
    [
        ({"messages": [USER, ASSISTANT]}, [USER, ASSISTANT], 1),
        ({"messages": [SYSTEM, USER, ASSISTANT, *MORE]}, [SYSTEM, USER, ASSISTANT, *MORE], 4),
        ({"messages": [USER, ASSISTANT, MORE[0]]}, [USER, ASSISTANT, MORE[0]], 1),
        ({"prompt": USER["content"], "completion": ASSISTANT["content"]}, [USER, ASSISTANT], 1),
        ({"prompt": [SYSTEM, USER], "completion": ASSISTANT["content"]}, [SYSTEM, USER, ASSISTANT], 2),
        ({"prompt": USER["content"], "completion": [ASSISTANT, *MORE]}, [USER, ASSISTANT, *MORE], 1),
        ({"prompt": [USER, ASSISTANT], "completion": MORE}, [USER, ASSISTANT, *MORE], 2),
        ({"messages": [{**USER, "weight": 1}, {**ASSISTANT, "tool_calls": None}]}, [USER, ASSISTANT], 1),
        (
            {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " Hello "}]},
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello "}],
            1,
        ),
    ],
)
def test_the_shapes_of_a_chat_example(write, row, messages, num_prompt_messages):
    path = write(row)
    assert read_chat_examples(path) == [ChatExample(messages, num_prompt_messages, f"{path}:1")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [SYSTEM, USER]}, "the example has no assistant turn"),
        ({"messages": []}, "the example has no assistant turn"),
        ({"prompt": [USER, ASSISTANT], "completion": [USER]}, "the completion has no assistant turn"),
        (
            {"messages": [{"role": "tool", "content": ""}]},
            r"messages\[0\] has the role 'tool'; accepted: system, ",
        ),
        ({"messages": [USER, {"role": ["a"], "content": ""}]}, r"messages\[1\] has the role \['a'\]"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            r"messages\[0\] has the content 3; expected a string",
        ),
        ({"messages": [{"role": "assistant", "content": None}]}, r"messages\[0\] has the content None"),
        (
            {"messages": [USER, {"role": "assistant"}]},
            r"messages\[1\] is .*; expected \{\"role\", \"content\"\}",
        ),
        ({"messages": ["Hi"]}, r"messages\[0\] is 'Hi'"),
        ({"messages": 5}, "messages is 5; expected a list of messages"),
        ({"messages": "Hi"}, "'Hi' is not a JSON list"),
        ({"prompt": 5, "completion": "a"}, "prompt is 5; expected a string or a list of messages"),
        ({"prompt": "a", "completion": {"role": "assistant"}}, "completion is {'role': 'assistant'}"),
        ({"prompt": "a", "completion": None}, "unknown shape; found: prompt, completion; expected"),
        ({"instruction": "a", "output": "b"}, "unknown shape; found: instruction, output; expected"),
        ({}, "unknown shape; found: none"),
        ({"Prompt": "a", " completion ": "b"}, r".* here \{prompt: 'Prompt', completion: ' completion '\}"),
    ],
)
def test_a_bad_example_is_named_by_its_line(write, row, message):
    path = write({"messages": [USER, ASSISTANT]}, row)
    with pytest.raises(ValueError, match=r"data\.jsonl:2: " + message):
        read_chat_examples(path)


def test_columns_name_what_a_set_calls_otherwise(write):
    path = write({"instruction": USER["content"], "output": ASSISTANT["content"], "messages": "not these"})
    with pytest.warns(UserWarning, match="not used: messages$"):
        [example] = read_chat_examples(path, columns={"prompt": "instruction", "completion": "output"})
    assert example.messages == [USER, ASSISTANT]
    path = write({"conversations": [USER, ASSISTANT]})
    [example] = read_chat_examples(path, columns={"messages": "conversations"})
    assert example.messages == [USER, ASSISTANT]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "instruction", "completion": "out"}, "no value in out; found: instruction, output"),
        ({"prompt": "instruction"}, "no value in completion; found: instruction, output"),
        ({"input": "instruction"}, "unknown name 'input'; accepted: messages, prompt, completion, text, system"),
        ({"messages": "instruction", "prompt": "output"}, "name two shapes"),
    ],
)
def test_columns_that_do_not_fit(write, columns, message):
    path = write({"instruction": "a", "output": "b"})
    with pytest.raises(ValueError, match=message):
        read_chat_examples(path, columns=columns)


def test_a_json_array_and_json_lines_by_the_name_json(tmp_path, write):
    rows = [{"messages": [USER, ASSISTANT]}, {"prompt": "a", "completion": "b"}]
    lines = read_chat_examples(write(*rows, name="lines.json"))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    array = read_chat_examples(str(tmp_path / "array.json"))
    assert [example.messages for example in array] == [example.messages for example in lines]
    assert array[1].source.endswith("array.json:2")
    (tmp_path / "array.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"array\.json: entry 1 is 1; expected an object"):
        read_chat_examples(str(tmp_path / "array.json"))
    (tmp_path / "array.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"array\.json: .*not a JSON list"):
        read_chat_examples(str(tmp_path / "array.json"))


def test_parquet(tmp_path):
    table = pyarrow.table({"conversations": [[USER, ASSISTANT], [SYSTEM, USER, ASSISTANT]]})
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(table, path)
    examples = read_chat_examples(str(path), columns={"messages": "conversations"})
    assert [example.messages for example in examples] == [[USER, ASSISTANT], [SYSTEM, USER, ASSISTANT]]
    assert examples[1].source == f"{path}:2"
    path.write_text("not this")
    with pytest.raises(ValueError, match=r"data\.parquet: not a Parquet file"):
        read_chat_examples(str(path))


def test_csv_keeps_text_as_it_is(tmp_path):
    path = write_csv(tmp_path / "data.csv", ["instruction", "output"], ["007", "NA"], ["two\nlines", ' a, "b" '])
    examples = read_chat_examples(path, columns={"prompt": "instruction", "completion": "output"})
    assert [[message["content"] for message in example.messages] for example in examples] == [
        ["007", "NA"],
        ["two\nlines", ' a, "b" '],
    ]
    assert [example.source for example in examples] == [f"{path}:2", f"{path}:4"]


def test_csv_cells_may_hold_messages_as_json(tmp_path):
    cell = json.dumps([USER, ASSISTANT])
    [example] = read_chat_examples(write_csv(tmp_path / "data.csv", ["messages"], [cell]))
    assert example.messages == [USER, ASSISTANT]
    path = write_csv(tmp_path / "two.csv", ["prompt", "completion"], [json.dumps([SYSTEM, USER]), "[1, 2]"])
    [example] = read_chat_examples(path)
    assert example.messages == [SYSTEM, USER, {"role": "assistant", "content": "[1, 2]"}]
    path = write_csv(tmp_path / "bad.csv", ["prompt", "completion"], ['[{"role": "user"', "a"])
    with pytest.raises(ValueError, match=r"bad\.csv:2: .*not a JSON list"):
        read_chat_examples(path)


def test_csv_cells_may_be_long_and_the_limit_is_put_back(tmp_path):
    path = write_csv(tmp_path / "data.csv", ["prompt", "completion"], ["a" * 200_000, "b"])
    before = csv.field_size_limit(1000)
    try:
        assert len(read_chat_examples(path)[0].messages[0]["content"]) == 200_000
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,completion\na,b,c\n", "data.csv:2: more cells than the 2 columns"),
        ("prompt,completion\na\n", "data.csv:2: unknown shape; found: prompt, completion"),
        ('prompt,completion\na,"b\n', "data.csv:2: not CSV"),
        ("prompt,completion\n", "empty; expected rows of"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_chat_examples(str(tmp_path / "data.csv"))


def test_empty_and_unknown_files(tmp_path, write):
    with pytest.raises(ValueError, match=r"data\.jsonl: empty; expected rows of"):
        read_chat_examples(write())
    with pytest.raises(ValueError, match=r"data\.jsonl: empty; expected rows of"):
        read_prompts(write())
    (tmp_path / "data.txt").write_text("a")
    with pytest.raises(ValueError, match=r"unknown kind '\.txt'; accepted: \.jsonl, \.json, \.parquet, \.csv, \.tsv"):
        read_chat_examples(str(tmp_path / "data.txt"))


@pytest.mark.parametrize("source", ["data/gone.jsonl", "gone.csv", "./gone", "/tmp/gone", "a/b/c", "~/gone", ""])
def test_a_missing_file_is_not_looked_for_on_the_hub(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    if not source:  # the current directory, of all things, is what an empty path means
        with pytest.raises(ValueError, match="source is empty"):
            read_chat_examples(source)
        return
    with pytest.raises(ValueError, match=f"no such file: {source}; expected a"):
        read_chat_examples(source)


@pytest.mark.parametrize(
    "error", [datasets.exceptions.DatasetNotFoundError("doesn't exist"), ConnectionError("no route")]
)
def test_a_name_that_the_hub_does_not_give(monkeypatch, error):
    def refuse(name, configuration, split, revision):
        assert (name, configuration, split, revision) == ("owner/chats", None, "test", None)
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"owner/chats: no local file, and no dataset of that name \(.*\)"):
        read_prompts("owner/chats", split="test")


def test_a_data_set_by_its_hub_id(monkeypatch):
    rows = datasets.Dataset.from_list([{"conversations": [USER, ASSISTANT]}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration, split, revision: rows)
    [example] = read_chat_examples("owner/chats", split="test", columns={"messages": "conversations"})
    assert example == ChatExample([USER, ASSISTANT], 1, "owner/chats[test]:1")


def test_a_local_directory_in_the_layout_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "chats" / "data").mkdir(parents=True)
    for split, text in (("train", "one"), ("test", "two")):
        table = pyarrow.table({"prompt": [text], "completion": [[ASSISTANT]]})
        pyarrow.parquet.write_table(table, tmp_path / "chats" / "data" / f"{split}-00000-of-00001.parquet")
    source = str(tmp_path / "chats")
    for split, text in (("train", "one"), ("test", "two")):
        [example] = read_chat_examples(source, split=split)
        assert example.messages == [{"role": "user", "content": text}, ASSISTANT]
        assert example.source == f"{source}[{split}]:1"
    with pytest.raises(ValueError, match='Unknown split "valid"'):
        read_chat_examples(source, split="valid")


def test_prompts(write):
    path = write(
        {"prompt": "How?", "id": "how"},
        {"messages": [SYSTEM, USER], "id": 7},
        # a hub set's row: the conversation beside its prompt
        {
            "prompt": [SYSTEM, USER, ASSISTANT, MORE[0]],
            "messages": [USER, ASSISTANT],
            "completion": "not read",
        },
    )
    with pytest.warns(UserWarning, match=r"not used: completion \(1 of 3 rows\), messages \(1 of 3 rows\)$"):
        how, seven, digest = read_prompts(path)
    assert how == Prompt("how", [{"role": "user", "content": "How?"}], f"{path}:1")
    assert seven == Prompt("7", [SYSTEM, USER], f"{path}:2")
    assert digest.messages == [SYSTEM, USER, ASSISTANT, MORE[0]]
    assert len(digest.id) == 8
    assert int(digest.id, 16) >= 0


def test_a_prompts_default_id_depends_on_its_messages_alone(write):
    [one] = read_prompts(write({"prompt": "How?"}, name="one.jsonl"))
    other, two = read_prompts(write({"prompt": "Why?"}, {"messages": [{"role": "user", "content": "How?"}]}))
    assert one.id == two.id
    assert one.id != other.id


def test_prompt_columns(write, tmp_path):
    path = write_csv(tmp_path / "prompts.csv", ["question", "number"], ["How?", "q1"], ["Why?", ""])
    how, why = read_prompts(path, columns={"prompt": "question", "id": "number"})
    assert (how.id, how.messages[0]["content"]) == ("q1", "How?")
    assert len(why.id) == 8
    with pytest.raises(ValueError, match="no column 'key'; found: question, number"):
        read_prompts(path, columns={"prompt": "question", "id": "key"})
    with pytest.raises(ValueError, match="unknown name 'completion'; accepted: messages, prompt, id, system"):
        read_prompts(path, columns={"completion": "question"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, ASSISTANT]}, r"data\.jsonl:2: the prompt ends with an assistant turn \('Mix"),
        ({"messages": []}, r"data\.jsonl:2: the prompt has no messages"),
        ({"prompt": "Why?", "id": "a"}, r"data\.jsonl:2: id 'a' already occurs at .*data\.jsonl:1"),
        ({"prompt": "Why?", "id": 1.5}, r"data\.jsonl:2: id 1\.5; expected a string or an integer"),
        ({"prompt": "Why?", "id": True}, r"data\.jsonl:2: id True"),
        ({"question": "Why?"}, r"data\.jsonl:2: unknown shape; found: question"),
    ],
)
def test_bad_prompts(write, row, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write({"prompt": "How?", "id": "a"}, row))


def test_a_repeated_prompt_without_ids_is_named_at_both_lines(write):
    with pytest.raises(ValueError, match=r"jsonl:3: id '\w{8}' already occurs at .*jsonl:1"):
        read_prompts(write({"prompt": "How?"}, {"prompt": "Why?"}, {"prompt": "How?"}))


def told(read, *args, **options):
    """What a reader gives, and the lines that it says."""
    lines = []
    return read(*args, say=lines.append, **options), lines


def test_alpacas_input_is_part_of_the_prompt_and_said(write):
    rows = [{"instruction": "Translate", "input": text, "output": "nuit"} for text in ("night", "", None)]
    path = write(*rows)
    columns = {"prompt": "instruction", "completion": "output"}
    for asked, said in (
        (columns, [f"{path}: read by convention: input, joined to instruction (1 of 3 rows)"]),
        ({**columns, "prompt": ["instruction", "input"]}, []),
    ):
        examples, lines = told(read_chat_examples, path, columns=asked)
        prompts = [example.messages[0]["content"] for example in examples]
        assert prompts == ["Translate\n\nnight", "Translate", "Translate"]
        assert lines == said
    [example, *_], lines = told(read_chat_examples, path, columns={**columns, "prompt": ["instruction"]})
    assert example.messages[0]["content"] == "Translate"
    assert lines == [f"{path}: not used: input (1 of 3 rows)"]
    with pytest.raises(
        ValueError, match=r"unknown shape; .* here \{prompt: \[instruction, input\], completion: output\}"
    ):
        read_chat_examples(path)


def test_a_rows_system_is_its_system_turn(write):
    turns = [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": ASSISTANT["content"]}]
    path = write({"system": SYSTEM["content"], "conversations": turns}, {"conversations": turns})
    examples, lines = told(read_chat_examples, path, columns={"messages": "conversations"})
    assert [example.messages for example in examples] == [[SYSTEM, USER, ASSISTANT], [USER, ASSISTANT]]
    assert [example.num_prompt_messages for example in examples] == [2, 1]
    assert lines == [f"{path}: read by convention: system, as the system turn (1 of 2 rows)"]
    path = write({"rules": SYSTEM["content"], "prompt": USER["content"]})
    assert told(read_prompts, path, columns={"system": "rules"})[0][0].messages == [SYSTEM, USER]
    path = write({"rules": SYSTEM["content"], "prompt": USER["content"], "completion": ASSISTANT["content"]})
    [example], lines = told(read_chat_examples, path, columns={"system": "rules"})
    assert (example.messages, example.num_prompt_messages, lines) == ([SYSTEM, USER, ASSISTANT], 2, [])
    assert told(read_prompts, write({"system": "Be brief.", "messages": [SYSTEM, USER]}))[1] == []
    with pytest.raises(
        ValueError, match="system is 'Be long.', and the first message is another system turn, 'Be brief"
    ):
        read_prompts(write({"system": "Be long.", "messages": [SYSTEM, USER]}))
    with pytest.raises(ValueError, match="no column 'rule'; found: system, messages"):
        read_prompts(write({"system": "Be long.", "messages": [USER]}), columns={"system": "rule"})


def test_what_nobody_reads_is_counted_once_and_what_changes_the_meaning_refused(write):
    thoughtful = {**ASSISTANT, "reasoning_content": "Let me see.", "name": None}
    rows = [
        {"messages": [USER, thoughtful], "source": "web", "tools": "[]"},
        {"messages": [USER, ASSISTANT], "source": ""},
    ]
    path = write(*rows)
    examples, lines = told(read_chat_examples, path)
    assert [example.messages for example in examples] == [[USER, ASSISTANT]] * 2
    assert lines == [f"{path}: not used: messages.reasoning_content (1 of 2 rows), source (1 of 2 rows)"]
    with pytest.raises(ValueError, match=r"jsonl:1: tools is .*'f'.*where: \{tools: null\}"):
        read_chat_examples(write({"messages": [USER, ASSISTANT], "tools": [{"name": "f"}]}))
    with pytest.raises(ValueError, match=r"messages\[1\] has tool_calls .* accepted: messages of text alone"):
        read_chat_examples(write({"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": 1}]}]}))


def test_a_turns_weight_says_whether_it_is_learned(write):
    turns = [USER, {**ASSISTANT, "weight": 0}, MORE[0], {**MORE[1], "weight": 1}]
    [example] = read_chat_examples(write({"messages": turns}))
    assert (example.messages, example.unlearned) == ([USER, ASSISTANT, *MORE], (1,))
    [example] = read_chat_examples(
        write({"prompt": [USER, {**ASSISTANT, "weight": 0}, MORE[0]], "completion": "Sugar."})
    )
    assert example.unlearned == (1,)
    with pytest.raises(ValueError, match=r"messages\[1\] has the weight 0\.5; accepted: 0 \(not learned\) or 1"):
        read_chat_examples(write({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}))


def test_text_parts_are_joined_and_other_parts_refused(write):
    parts = [{"type": "text", "text": "How do I "}, {"type": "text", "text": "bake bread?", "image_url": None}]
    path = write({"messages": [{"role": "user", "content": parts}, ASSISTANT]})
    assert read_chat_examples(path)[0].messages == [USER, ASSISTANT]
    path = write({"prompt": [{"role": "user", "content": [*parts, {"type": "image_url", "image_url": "x"}]}]})
    with pytest.raises(ValueError, match=r"prompt\[0\] has a content part of type 'image_url'; accepted: \{\"type\": "):
        read_prompts(path)


def test_repeats_are_dropped_where_asked_and_counted(write):
    path = write({"prompt": "How?", "n": 1}, {"prompt": "Why?", "n": 2}, {"prompt": "How?", "n": 3})
    prompts, lines = told(read_prompts, DataSource(path, columns={"id": "n"}, duplicates="drop"))
    assert [prompt.id for prompt in prompts] == ["1", "2"]
    assert lines == [f"{path}: dropped 1 of 3 rows that repeat an earlier one"]
    path = write({"prompt": "How?", "id": "a"}, {"prompt": "Why?", "id": "a"})
    with pytest.raises(ValueError, match=r"jsonl:2: id 'a' already occurs at .*`duplicates: drop`"):
        read_prompts(DataSource(path, duplicates="drop"))
    path = write({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"})
    assert len(read_chat_examples(path)) == 2
    assert len(told(read_chat_examples, DataSource(path, duplicates="drop"))[0]) == 1


def test_raw_text(write):
    path = write({"text": "The moon is basalt."})
    assert read_chat_examples(path) == [ChatExample([], 0, f"{path}:1", text="The moon is basalt.")]
    [example], lines = told(read_chat_examples, write({"body": "The moon."}), columns={"text": "body"})
    assert (example.prompt, lines) == ("The moon.", [])
    for rows, said in (
        ([{"text": "a"}, {"messages": [USER, ASSISTANT]}], "jsonl:2: raw text and conversations in one set"),
        ([{"text": " "}], "jsonl:1: text is ' '; expected a text that is not blank"),
    ):
        with pytest.raises(ValueError, match=said):
            read_chat_examples(write(*rows))
