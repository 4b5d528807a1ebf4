"""Text and records that mean ill: what models, data sets and broken files hold is shown and does nothing."""

import json
import random
import re
import unicodedata

import pytest
from conftest import rest_slow
from markdown_it import MarkdownIt
from pages import CONFIG, NUM_PROMPTS, PATTERNS, evaluation, layers_of, make_run, page_of, responses, write_lines
from tiny_models import tiny_llama

from gradsteer.judges.recorded_patterns import recorded_patterns
from gradsteer.reports.page import matches
from gradsteer.reports.page.commands import replay_commands
from gradsteer.reports.page.matches import Piece, pieces
from gradsteer.reports.page.records import read_records
from gradsteer.reports.page.visible import markdown_text, visible
from gradsteer.reports.results import read_results
from gradsteer.steering.conditions import slug_of
from gradsteer.vectors.parameter_vectors import SteeringVector

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style></mark></p><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)><a href="javascript:alert(1)">x</a></svg>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% include 'x' %} <!-- --> ]]> &lt;b&gt;",
    "before\u202etxt.exe\u2066\u200b\ufeff\x00\x07\x1b[31m\x7f\u2028after",
    "| a | b |\n| --- | --- |\n# heading\n```\n[x](javascript:alert(1)) ![y](http://evil/z.png) <script>\n- item\n***",
    "\U000e0041\U000e0042 hidden \u00ad tags",
]
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "p", "h1", "h2", "h3", "h4", "nav", "a", "div", "main",
    "section", "dl", "dt", "dd", "figure", "figcaption", "b", "table", "thead", "tbody", "tr", "th", "td", "span", "ul",
    "li", "mark", "article", "blockquote", "pre", "code", "footer", "img",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "class", "id", "href", "aria-label", "tabindex", "role",
    "scope", "dir", "title", "src", "width", "height", "alt",
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", tiny_llama())


def squeezed(text):
    return "".join(text.split())


@pytest.fixture
def poisoned(run):
    """Every text that a record can hold is hostile."""
    bad = "".join(HOSTILE)
    results = read_results(run / "results.json")
    rows = results["conditions"]
    for row in rows:
        old, row["name"] = row["name"], f"{row['name']} {HOSTILE[0]}"
        rates = {name: rate["rate"] for name, rate in row["behaviors"].items()}
        prompts = dict(zip(range(NUM_PROMPTS), HOSTILE, strict=False))
        lines = responses(old, rates, prompts)
        for line in lines:
            line["completion"] += f" Golden Gate {HOSTILE[line['sample']]} {bad}"
            line["failed"] = None
        write_lines(run / "responses" / f"{slug_of(row['name'])}.jsonl", lines)
    results |= {"experiment": HOSTILE[2], "note": "\n".join(HOSTILE)}
    results["evaluation"] = evaluation(model=bad, dtype=HOSTILE[3], patterns=PATTERNS)
    (run / "results.json").write_text(json.dumps(results))
    vector = SteeringVector.load(run / "vectors" / "bridge.safetensors")
    metadata = {**vector.metadata, "plus": HOSTILE[1], "loss": HOSTILE[6], "plus_where": json.dumps({HOSTILE[0]: True})}
    SteeringVector(vector.tensors, metadata).save(run / "vectors" / "bridge.safetensors")
    config = CONFIG.format(command="fit").replace("chat.jsonl", json.dumps(bad))
    (run / "fit" / "version_0" / "config.yaml").write_text(config, encoding="utf-8")
    return run


def test_hostile_text_is_shown_and_does_nothing(poisoned):
    written, page = page_of(poisoned)
    assert {*page.tags} <= ALLOWED
    assert {name for _, name, _ in page.attributes} <= ATTRIBUTES
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert not [value for _, name, value in page.attributes if name == "src"]
    assert page.source.count("<style>") == page.source.count("</style>") == 1
    assert '''content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"''' in page.source
    for text in HOSTILE:
        assert squeezed(visible(text)) in squeezed(page.text)
    source = written.html.read_text(encoding="utf-8")
    strange = {c for c in source if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert strange <= {"\n", "\t"}
    assert "⟨U+202E⟩txt.exe⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[31m⟨U+007F⟩⟨U+2028⟩after" in source
    assert "Golden Gate" in page.marked


def test_hostile_text_in_markdown_is_shown_and_does_nothing(poisoned):
    """As a reader that lets HTML pass would show it."""
    written, _ = page_of(poisoned)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(written.markdown.read_text("utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "fence", "code_block", "hr"}
    headings = [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]
    assert len(headings) == 13  # the title, ten sections, two vectors
    text = squeezed("".join(child.content for child in inline if child.type == "text"))
    for hostile in HOSTILE:
        assert squeezed(visible(hostile)) in text


def test_joiners_of_emoji_and_scripts_stay_and_what_is_invisible_is_named():
    assert visible("👩‍🚀 می‌خواهم\tא\n") == "👩‍🚀 می‌خواهم\tא\n"
    assert visible("a\r\nb\rc\ud800\u061c") == "a\nb⟨U+000D⟩c⟨U+D800⟩⟨U+061C⟩"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.0 [0.0, 3.7]?", r"0.0 \[0.0, 3.7\]?"),
        ("- item", r"\- item"),
        ("-0.3", "-0.3"),
        ("1. one", r"1\. one"),
        ("===", r"\==="),
        ("a_b*c|d", r"a\_b\*c\|d"),
    ],
)
def test_markdown_is_escaped_where_it_would_mean_something(text, shown):
    assert markdown_text(text) == shown


def test_marks_are_where_patterns_match_the_vectors_own_first():
    patterns = {"a": ["(?i)gate", "gate bridge"], "b": ["golden gate", "red"]}
    text = "golden Gate bridge red"
    assert pieces(text, patterns, "a") == [
        Piece("golden "), Piece("Gate", "a"), Piece(" bridge "), Piece("red", "b"),
    ]  # fmt: skip
    assert pieces("golden gate", patterns, "b") == [Piece("golden gate", "b")]
    assert pieces("gate gate, gate", {"a": ["gate", "(?=x)|"]}) == [
        Piece("gate gate", "a"), Piece(", "), Piece("gate", "a"),
    ]  # fmt: skip


def test_a_pattern_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(matches, "_SECONDS", 0.02)
    with pytest.raises(ValueError, match=r"takes longer than 0\.02 s on a response"):
        pieces("ab" * 600, {"a": ["(.+)(.+)(.+)(.+)(.+)(.+)(?<!ab)$"]})
    with pytest.raises(ValueError, match="cannot be marked"):
        pieces("ab", {"a": ["("]})


def test_examples_are_shown_without_marks_where_these_fail(run, monkeypatch):
    def late(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(matches.regex, "finditer", late)
    written, page = page_of(run)
    assert any("takes longer than 1 s on a response" in text for text in written.not_there)
    assert page.source.count('<article class="example">') == 6
    assert {*page.marked} == {"marked", "dotted"}


@pytest.mark.parametrize("patterns", rest_slow([{"a": ["("]}, {"a": "text"}, [1], 5, {1: ["a"]}, "/nowhere.json"], 2))
def test_records_that_are_no_patterns_are_refused(patterns, tmp_path):
    with pytest.raises(ValueError, match="pattern|behavior"):
        recorded_patterns({"judge_settings": {"init_args": {"patterns": patterns}}}, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results.json", "{", "results.json: Expecting property name"),
        ("results.json", "[" * 100_000, "results.json: maximum recursion depth"),
        ("results.json", b"\xff\xfe", "results.json: 'utf-8' codec"),
        ("results.json", "[1]", "results.json: not a report of format 1"),
        ("results.json", '{"format": 2}', "results.json: not a report of format 1"),
        ("results.json", '{"format": 1, "conditions": 7}', "results.json: no condition in it can be read"),
        ("responses/anchor.jsonl", "not json\n", "examples of bridge: "),
        ("responses/anchor.jsonl", '{"prompt": 1}\n', "examples of bridge: no prompt"),
        ("vectors/bridge.safetensors", b"none", "vectors/bridge.safetensors: "),
        ("steer/version_0/config.yaml", "a: [", "steer/version_0/config.yaml: "),
        (
            "steer/version_0/config.yaml",
            "!!python/object/apply:os.system ['touch pwned']",
            "could not determine a const",
        ),
    ],
)
def test_a_broken_file_costs_its_own_part_alone(run, name, content, said):
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    written, page = page_of(run, layers=None)
    assert any(said in text for text in written.not_there), written.not_there
    assert "Replay" in page.headings
    assert ("Rates" in page.headings) is (name != "results.json")


JUNK = ["x", "<b>", [], {}, 1e400, -1, True, None, 10**400, ["a"], {"a": {}}, "\ud800"]


def places(value, path=()):
    """The places in a nested value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def spoil(results, drawn):
    *path, last = drawn.choice([place for place in places(results) if place])
    value = results
    for key in path:
        value = value[key]
    value[last] = drawn.choice(JUNK)


@pytest.mark.parametrize("seed", rest_slow(list(range(60)), kept=4))
def test_any_value_in_the_results_may_be_anything(run, seed):
    """Values at drawn places are replaced: the page is written, whatever of it is left."""
    drawn = random.Random(seed)
    results = read_results(run / "results.json")
    for _ in range(6):
        spoil(results, drawn)
    (run / "results.json").write_text(json.dumps(results))
    written, page = page_of(run, layers=layers_of(run))
    assert page.headings[0] == "What was asked"
    assert page.headings[-1] == "Replay"
    assert not re.search(r"<b><", page.source)
    assert written.markdown.is_file()


def test_one_broken_condition_is_left_out_and_the_others_are_shown(run):
    results = read_results(run / "results.json")
    results["conditions"][3]["behaviors"]["bridge"]["rate"] = "<script>"
    del results["conditions"][4]["specificity"], results["conditions"][4]["damaged"]  # as of an earlier version
    (run / "results.json").write_text(json.dumps(results))
    written, page = page_of(run)
    assert any(text.startswith("results.json, condition 4: ") for text in written.not_there)
    names = [row["name"] for row in results["conditions"]]
    table = page.source.split("Rates of judged behaviors in %")[2].split("</table>")[0]
    assert [name in table for name in names] == [name != names[3] for name in names]


def test_conditions_that_are_sound_alone_and_not_together_cost_their_parts(run):
    results = read_results(run / "results.json")
    steered = [row for row in results["conditions"] if row["kind"] == "steered"]
    for row in steered:
        row |= {"predicted": None, "specificity": None, "comparisons": None}
    steered[0]["alpha"] = "x"
    (run / "results.json").write_text(json.dumps(results))
    written, page = page_of(run)
    assert "Rates" in page.headings
    assert any(text.startswith("trade-offs: ") for text in written.not_there)


def test_only_our_own_command_lines_are_shown_for_replay(run):
    path = run / "steer" / "version_0" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("# replay: python -m gradsteer", "# replay: rm -rf / #"))
    assert [line for line in replay_commands(read_records(run)) if "gradsteer steer" in line] == []
    path.write_text(text.replace("out/steer/version_0/config.yaml\n", "$(rm).yaml;rm\n"))
    (line,) = [line for line in replay_commands(read_records(run)) if "gradsteer steer" in line]
    assert line == "python -m gradsteer steer --config '$(rm).yaml;rm'"


def test_the_corpus_has_its_command_too(run):
    (run / "stages").mkdir()
    record = run / "stages" / "corpus.json"
    record.write_text(json.dumps({"options": {"num_samples": "20", "seed": "3"}}))
    assert replay_commands(read_records(run))[0] == (
        "python -m gradsteer corpus --num_samples 20 --seed 3 --output_dir out"
    )
    record.write_text(json.dumps({"options": {"num_samples": "$(rm)", "seed": "3"}}))
    assert "corpus" not in replay_commands(read_records(run))[0]
