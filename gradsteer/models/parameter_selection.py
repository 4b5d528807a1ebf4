"""Choosing parameters by name, layer or kind."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from gradsteer.models.layers import layer_of

KINDS = {
    "attention": re.compile(r"(^|\.)(self_attn|attn|attention|self_attention)\."),
    "mlp": re.compile(r"(^|\.)(mlp|feed_forward|block_sparse_moe|fc1|fc2|experts)\."),
    "embedding": re.compile(r"(^|\.)(embed_tokens|embed_in|wte|wpe|embed_positions|embeddings?|word_embeddings)\."),
    "head": re.compile(r"(^|\.)(lm_head|embed_out)\."),
    "norm": re.compile(r"norm|(^|\.)ln_"),
}
ACCEPTED = (
    'a glob over parameter names such as "*.q_proj.weight", "layer:1", "layer:0-3", "layer:embedding", '
    f'"kind:{"|".join(KINDS)}", each with a leading "!" to leave out'
)


def kind_of(name: str) -> str:
    """What sort of parameter a name is: norm, attention, mlp, embedding, head, or other.

    >>> kind_of("model.layers.3.mlp.up_proj.weight")
    'mlp'
    """
    for kind in ("norm", "attention", "mlp", "embedding", "head"):
        if KINDS[kind].search(name):
            return kind
    return "other"


def select_parameters(names: Iterable[str], rules: Sequence[str]) -> list[str]:
    """The names that any rule takes in (all, where every rule leaves out) and no rule leaves out.

    Args:
        names: parameter names, in the model's order, which is kept.
        rules: see `ACCEPTED`.

    Raises:
        ValueError: a rule that is not understood or that no parameter meets, or nothing is left.
    """
    every = list(names)
    taken: set[str] = set()
    left_out: set[str] = set()
    for rule in rules:
        bare = rule.removeprefix("!")
        met = {name for name in every if _meets(name, bare)}
        if not met:
            raise ValueError(f"no parameter meets {rule!r}; accepted: {ACCEPTED}")
        (left_out if rule.startswith("!") else taken).update(met)
    if all(rule.startswith("!") for rule in rules):
        taken = set(every)
    chosen = [name for name in every if name in taken - left_out]
    if not chosen:
        raise ValueError(f"the rules {list(rules)} leave no parameter")
    return chosen


def _meets(name: str, rule: str) -> bool:
    form, _, value = rule.partition(":")
    if form == "kind":
        if value not in KINDS:
            raise ValueError(f"unknown kind in {rule!r}; accepted: {', '.join(KINDS)}")
        return kind_of(name) == value
    if form == "layer":
        span = re.fullmatch(r"(\d+)-(\d+)", value)
        layer = layer_of(name)
        if span:
            return layer.isdigit() and int(span[1]) <= int(layer) <= int(span[2])
        return layer == value
    return fnmatchcase(name, rule)
