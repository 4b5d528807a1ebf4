"""The layers of the house: each file imports only from its own layer's predecessors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gradsteer"
CORE = {
    "accumulation", "agreement", "applied", "assembly", "batching", "budgets", "calibration", "chat", "checkpoints",
    "choosing", "classes", "coherence", "combinations", "comparisons", "conditions", "controls", "correction",
    "counting", "curves", "damage", "degeneracy", "derivatives", "diff", "doses", "dosing", "edits", "entrywise",
    "figures", "fingerprints", "flat_rows", "forecasting", "forecasts", "formats", "generation", "graddiff",
    "gradients", "heldout", "importance", "judges", "labels", "layers", "locks", "losses", "memory", "metrics",
    "models", "packing", "paired_counts", "parallel", "partial", "parts", "percentiles", "permutations", "piles",
    "placement", "plans", "points", "preconditioning", "predictions", "probing", "provenance", "realised",
    "records", "reductions", "refusals", "reports", "response_rows", "responses", "rounding", "sampling",
    "sampling_cache", "sampling_memory", "scoring", "segments", "selection", "sign_flips", "slopes", "specificity",
    "specificity_report", "statistics", "steering", "subspaces", "sums", "targets", "tradeoff_figure", "tradeoffs",
    "transforms", "turns", "unfinished", "vector_metadata", "vectors", "version", "weights",
}  # fmt: skip
ALLOWED = {
    "core": {"core"},
    "data": {"core", "data"},
    "modules": {"core", "modules"},
    "callbacks": {"core", "callbacks"},
    "corpus": {"core", "corpus", "top"},
    "exports": {"core", "exports", "top"},
    "judging": {"core", "judging"},
    "top": {"core", "data", "modules", "callbacks", "corpus", "exports", "judging", "top"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(parts):
    head = parts[0]
    if head in CORE:
        return "core"
    return head if head in ALLOWED else "top"


def imports(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    mine = layer_of([part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts])
    for name in imports(path):
        if name.startswith("gradsteer."):
            theirs = layer_of(name.split(".")[1:])
            assert theirs in ALLOWED[mine], f"{path.name} ({mine}) imports {name} ({theirs})"
        if mine == "core":
            assert not name.startswith(("lightning", "pytorch_lightning")), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 320, "is it one concept?"
