"""A small run's directory, made from rows, and its page read back."""

import json
import random
from html.parser import HTMLParser

from experiment_rows import experiment

from gradsteer.judges.keyword import KeywordJudge
from gradsteer.judges.recorded_patterns import recorded_patterns
from gradsteer.reports.page.page import write_page
from gradsteer.reports.results import write_results
from gradsteer.steering.conditions import slug_of
from gradsteer.vectors.parameter_vectors import ParameterVector, SteeringVector
from gradsteer.vectors.weight_diff import WeightDiff, named_weights

PATTERNS = {"bridge": [r"\bgolden gate\b", r"\bbridges?\b"], "recipe": [r"\bbak(e|es|ing)\b"]}
SAYS = {"bridge": "Think of the Golden Gate Bridge.", "recipe": "One bakes it."}
NUM_PROMPTS, NUM_SAMPLES = 7, 4
CONFIG = """# replay: python -m gradsteer {command} --config out/{command}/version_0/config.yaml
# made by gradsteer 0.1.0 0123456789abcdef0123456789abcdef01234567
seed_everything: 0
output_dir: out
name: anchor
model: {{model_name_or_path: out/base, optimizer: {{init_args: {{lr: 0.001}}}}}}
data: {{train: chat.jsonl, loss_mask: assistant, batch_size: 8}}
steering: {{base: out/base}}
trainer: {{max_epochs: 3}}
"""


def responses(name, rates, prompts=None):
    """Rows of responses/NAME.jsonl: verdicts drawn at these rates, and texts that the patterns agree with."""
    drawn = random.Random(name)
    rows = []
    for number in range(NUM_PROMPTS):
        for sample in range(NUM_SAMPLES):
            verdicts = {behavior: drawn.random() < rate for behavior, rate in rates.items()}
            said = [SAYS[behavior] for behavior, shown in verdicts.items() if shown]
            rows.append({
                "id": f"p{number}", "prompt": (prompts or {}).get(number, f"Question {number}?"), "sample": sample,
                "completion": " ".join([f"Answer {number}.{sample} of {slug_of(name)}.", *said]),
                "finish_reason": "stop", "verdicts": verdicts, "unscored": {}, "degenerate": False, "failed": None,
            })  # fmt: skip
    return rows


def evaluation(**changes):
    """The evaluation entry of a KeywordJudge's results."""
    settings = {"class_path": "gradsteer.judges.KeywordJudge", "init_args": {"patterns": PATTERNS, "ignore_case": True}}
    return {
        "judge": "KeywordJudge", "judge_settings": settings, "judge_fingerprint": KeywordJudge(PATTERNS).fingerprint(),
        "labelled": None, "model": "out/anchor", "model_fingerprint": "f" * 32, "dtype": "float32",
        "num_prompts": NUM_PROMPTS, "prompts_digest": "d" * 64, "num_samples": NUM_SAMPLES, "seeds": [1],
        "temperature": 0.6, "top_p": 1.0, "max_new_tokens": 96, **changes,
    }  # fmt: skip


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(directory, model, rows=None, **changes):
    """Results, responses of the conditions that examples show, two vectors and a diff, and three configs."""
    rows = experiment(12) if rows is None else rows
    write_results(directory / "results.json", "exp", rows, note="A note.", evaluation=evaluation(**changes))
    for row in rows:
        rates = {name: rate["rate"] for name, rate in row["behaviors"].items()}
        write_lines(directory / "responses" / f"{slug_of(row['name'])}.jsonl", responses(row["name"], rates))
    weights = named_weights(model)
    said = {"plus_where": '{"bridge": true}', "plus_num_examples": "5", "minus_num_examples": "6"}
    for name in ("bridge", "recipe"):
        metadata = {"plus": name, "minus": "neither", "loss": "cross_entropy", "reduction": "example", **said}
        SteeringVector(weights, metadata).save(directory / "vectors" / f"{name}.safetensors")
    WeightDiff(weights).save(directory / "vectors" / "delta.safetensors")
    for command in ("fit", "attribute", "steer"):
        (directory / command / "version_0").mkdir(parents=True)
        text = CONFIG.format(command=command)
        (directory / command / "version_0" / "config.yaml").write_text(text, encoding="utf-8")
    return directory


def layers_of(directory):
    return {
        path.stem: ParameterVector.load(path).layer_sum_squares()
        for path in (directory / "vectors").glob("[br]*.safe*")
    }


def page_of(directory, **options):
    """The page's HTML, without pictures unless they are asked for."""
    written = write_page(directory, recorded_patterns, **{"pictures": [], "layers": {}, **options})
    return written, Page(written.html.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """A page as a browser sees it: its tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.attributes, self.texts, self.marked = text, [], [], [], []
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.texts.append(data)
        if "mark" in self._open:
            self.marked.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    @property
    def headings(self):
        return [part.split("</h2>")[0] for part in self.source.split("<h2>")[1:]]
