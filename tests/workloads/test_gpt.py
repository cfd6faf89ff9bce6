"""The decoder: GPT-2's own logits, size and initial weights, and that no token looks ahead."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipelines import config
from pipelines.settings import Optim
from pipelines.training.optim import make_optimizer
from workloads.gpt import GPT
from workloads.layers.text import Decoder
from workloads.tasks.language_modeling import LanguageEncoding

VOCABULARY, WINDOW, LAYERS, HEADS, WIDTH = 97, 70, 3, 4, 48
GPT2_SMALL_PARAMETERS, GPT2_VOCABULARY = 124_439_808, 50_257
_GPT2_NAMES = {
    "embedding": "wte",
    "positions.table": "wpe.weight",
    "blocks": "h",
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.0": "mlp.c_fc",
    "feed_forward.2": "mlp.c_proj",
}


def decoder(**settings: Any) -> Decoder:
    """A small decoder whose every parameter is drawn anew, so that none is zero or one."""
    torch.manual_seed(0)
    made = Decoder(VOCABULARY, window=WINDOW, layers=LAYERS, heads=HEADS, width=WIDTH, **settings)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def text(rows: int, length: int = WINDOW) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def encoding(vocabulary: int) -> LanguageEncoding:
    model = {"type": "WordLevel", "vocab": {f"token {number}": number for number in range(vocabulary)}, "unk_token": "token 0"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return LanguageEncoding(tokenizer=json.dumps({"version": "1.0", "added_tokens": [], **parts, "model": model}))


def gpt2_name(name: str) -> str:
    for ours, theirs in _GPT2_NAMES.items():
        name = name.replace(ours, theirs)
    return f"ln_f{name.removeprefix('norm')}" if name.startswith("norm") else name


@pytest.mark.parametrize(("ours_is", "theirs_is"), [("gelu_tanh", "gelu_new"), ("gelu", "gelu"), ("relu", "relu")])
@pytest.mark.parametrize("length", [1, 7, WINDOW])
def test_the_logits_are_those_of_transformers_gpt2_with_the_same_weights(length: int, ours_is: str, theirs_is: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = decoder(activation=ours_is)
    settings = {"vocab_size": VOCABULARY, "n_positions": WINDOW, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    theirs = GPT2LMHeadModel(GPT2Config(activation_function=theirs_is, **settings, **silent)).eval()
    weights = theirs.transformer.state_dict()
    for name, source in ours.state_dict().items():
        target = weights.pop(gpt2_name(name))
        target.copy_(source.T if "c_" in gpt2_name(name) and source.ndim == 2 else source)  # their Conv1D keeps (inputs, outputs)
    assert not weights
    token_BT = text(5, length)
    with torch.no_grad():
        torch.testing.assert_close(ours(token_BT), theirs(token_BT).logits, rtol=0, atol=1e-4)


def test_the_gpu_preset_has_gpt2_smalls_124_439_808_parameters() -> None:
    workload = config.load("gpt", ["preset=gpu"]).run.model
    with torch.device("meta"):
        network = workload.network(encoding(GPT2_VOCABULARY))
    assert sum(parameter.numel() for parameter in network.parameters()) == GPT2_SMALL_PARAMETERS


@pytest.mark.parametrize("changed", [0, 1, 31, WINDOW - 1])
def test_a_changed_token_changes_the_logits_from_its_own_place_on_and_none_before(changed: int) -> None:
    model, token_BT = decoder(), text(4)
    other_BT = token_BT.clone()
    other_BT[:, changed] = (other_BT[:, changed] + 1) % VOCABULARY
    with torch.no_grad():
        differs_T = (model(token_BT) != model(other_BT)).flatten(2).any(2).all(0)
    assert not differs_T[:changed].any()
    assert differs_T[changed:].all()


def test_logits_at_one_place_of_each_row_are_those_of_the_whole() -> None:
    model, token_BT, place_B = decoder(), text(4), torch.tensor([0, 3, 17, WINDOW - 1])
    with torch.no_grad():
        torch.testing.assert_close(model(token_BT, place_B), model(token_BT)[torch.arange(4), place_B], rtol=0, atol=1e-5)


def test_a_fresh_network_says_that_every_token_is_about_as_likely() -> None:
    torch.manual_seed(0)
    model = GPT(window=WINDOW).network(encoding(VOCABULARY))
    token_BT = text(8)
    with torch.no_grad():
        loss = F.cross_entropy(model(token_BT)[:, :-1].flatten(0, 1), token_BT[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.1)


def test_initial_weights_are_gpt2s_smaller_where_a_residual_branch_ends() -> None:
    torch.manual_seed(0)
    weights = GPT(layers=8, width=256, window=256).network(encoding(VOCABULARY)).state_dict()
    ends = [name for name in weights if name.endswith(("attention.output.weight", "feed_forward.2.weight"))]
    others = [name for name, weight in weights.items() if weight.ndim > 1 and name not in ends]
    assert len(ends) == 2 * 8
    assert [weights[name].std().item() for name in ends] == pytest.approx([0.02 / math.sqrt(2 * 8)] * len(ends), rel=0.05)
    assert [weights[name].std().item() for name in others] == pytest.approx([0.02] * len(others), rel=0.05)


def test_matrices_and_embeddings_are_decayed_once_and_gains_and_biases_are_not() -> None:
    model = GPT(layers=2).network(encoding(VOCABULARY))
    decayed, kept = (group["params"] for group in make_optimizer(model, Optim(weight_decay=0.1)).param_groups)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len(decayed) + len(kept) == len(names) == len({*decayed, *kept})
    assert {names[parameter].rpartition(".")[2] for parameter in decayed} == {"weight", "table"}
    assert {names[parameter].split(".")[-2] for parameter in decayed} >= {"embedding", "positions", "query_key_value"}
    assert all(name.endswith("bias") or "norm" in name for name in map(names.__getitem__, kept))


def test_dropout_is_there_while_training_only() -> None:
    model, token_BT = decoder(dropout=0.5), text(2)
    with torch.no_grad():
        assert torch.equal(model(token_BT), model(token_BT))
        model.train()
        assert not torch.equal(model(token_BT), model(token_BT))


def test_a_width_that_the_heads_cannot_share_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.width=100 is no multiple of model\.heads=3"):
        GPT(width=100, heads=3)
