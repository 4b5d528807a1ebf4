import re

import pytest
import torch
from tiny_models import ragged_examples, tiny_llama

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.models.packing import Pack
from gradsteer.models.parameter_selection import kind_of, select_parameters

NAMES = [name for name, _ in tiny_llama(tied=False).named_parameters()]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], NAMES),
        (["layer:1"], [name for name in NAMES if ".layers.1." in name]),
        (["!layer:1"], [name for name in NAMES if ".layers.1." not in name]),
        (["layer:0-1"], [name for name in NAMES if ".layers." in name]),
        (["layer:embedding"], ["model.embed_tokens.weight"]),
        (["kind:mlp"], [name for name in NAMES if ".mlp." in name]),
        (["kind:norm"], [name for name in NAMES if "norm" in name]),
        (["kind:attention", "!*.q_proj.weight"], [n for n in NAMES if ".self_attn." in n and "q_proj" not in n]),
        (["*.q_proj.weight", "lm_head.weight"], [n for n in NAMES if "q_proj" in n or n == "lm_head.weight"]),
    ],
)
def test_rules_choose_by_glob_layer_and_kind(rules, expected):
    assert select_parameters(NAMES, rules) == expected


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["layer:9"], "no parameter meets 'layer:9'; accepted: a glob"),
        (["kind:mpl"], "unknown kind in 'kind:mpl'; accepted: attention, mlp"),
        (["layer:1", "!layer:0-1"], "leave no parameter"),
    ],
)
def test_rules_that_choose_nothing_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        select_parameters(NAMES, rules)


def test_every_parameter_of_known_architectures_has_a_kind():
    """What keeps a state is of no kind: it is chosen by name."""
    from test_packing import ARCHITECTURES, build

    state = re.compile(r"\.(mixer|mamba|conv|linear_attn)\.|\.A_log$|\.D$")
    for name in ARCHITECTURES:
        others = [parameter for parameter, _ in build(name).named_parameters() if kind_of(parameter) == "other"]
        assert [parameter for parameter in others if not state.search(parameter)] == [], name


@pytest.mark.parametrize("rules", [["layer:1"], ["!layer:1"], ["kind:mlp"]])
def test_gradients_of_chosen_parameters_are_those_of_all_and_the_rest_is_never_computed(rules, llama):
    examples = ragged_examples(5)
    everything = PileGradient(llama)
    everything.add(Pack.of(examples))
    chosen = select_parameters([name for name, _ in llama.named_parameters()], rules)
    some = PileGradient(llama, parameters=chosen)
    some.add(Pack.of(examples))
    average = some.average()
    assert list(average) == chosen
    for name in chosen:
        torch.testing.assert_close(average[name], everything.average()[name], rtol=1e-6, atol=1e-12)
    with some.sums.differentiating():
        needing = [name for name, parameter in llama.named_parameters() if parameter.requires_grad]
    assert needing == chosen


def test_layers_before_the_first_chosen_one_are_not_run_backward(llama):
    """The saved time is real: with only the last layer chosen, autograd does not follow the first."""
    followed = {}
    for index, layer in enumerate(llama.model.layers):
        layer.register_forward_hook(
            lambda _module, _inputs, out, index=index: followed.update({index: out.requires_grad})
        )
    some = PileGradient(llama, parameters=select_parameters(dict(llama.named_parameters()), ["layer:1"]))
    some.add(Pack.of(ragged_examples(3)))
    assert followed == {0: False, 1: True}
