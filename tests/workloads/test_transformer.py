"""The encoder, beside transformers' BERT with the same weights, and what it makes of padding and of the order of words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from workloads.layers.attention import sinusoids
from workloads.layers.text import EncoderClassifier
from workloads.tasks import tokens
from workloads.tasks.text_classification import TextEncoding
from workloads.transformer import Transformer

TEXTS = ["a good film", "", "not a good film at all , but a bad one", "bad", "a film"]
ENCODING = TextEncoding(classes=("no", "so so", "yes"), tokenizer=tokens.learn("words", iter([TEXTS]), vocabulary=50))
WORDS = tokens.size(ENCODING.tokenizer)
WIDTH, HEADS, HIDDEN, LAYERS, LENGTH = 24, 3, 40, 2, 16
BERT = {"norm": "post", "positions": "learned", "pool": "first"}


def network(**settings: Any) -> EncoderClassifier:
    shape = {"width": WIDTH, "heads": HEADS, "hidden": HIDDEN, "layers": LAYERS, "length": LENGTH}
    torch.manual_seed(0)
    made = Transformer.model_validate(shape | settings).network(ENCODING)
    assert isinstance(made, EncoderClassifier)
    for parameter in made.parameters():  # large weights: where two networks differ, it shows
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def batch(width: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    rows, lengths = tokens.numbers(ENCODING.tokenizer, TEXTS, length=width)
    return torch.from_numpy(rows), torch.from_numpy(lengths)


def bert(model: EncoderClassifier) -> torch.nn.Module:
    """transformers' BERT with weights of its own drawing, which are put into `model`."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
        num_labels=3,
    )
    torch.manual_seed(1)
    theirs = BertForSequenceClassification(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    weights = theirs.state_dict()

    def pair(ours: str, name: str) -> dict[str, torch.Tensor]:
        return {f"{ours}.{part}": weights[f"{name}.{part}"] for part in ("weight", "bias")}

    embeddings = "bert.embeddings."
    taken = {
        "embedding.weight": weights[f"{embeddings}word_embeddings.weight"],
        # every token is of the first kind, whose vector is added to each place's
        "positions.table": weights[f"{embeddings}position_embeddings.weight"] + weights[f"{embeddings}token_type_embeddings.weight"][0],
        **pair("first_norm", f"{embeddings}LayerNorm"),
        **pair("pooler.0", "bert.pooler.dense"),
        **pair("head", "classifier"),
    }
    for number in range(LAYERS):
        ours, layer = f"blocks.{number}.", f"bert.encoder.layer.{number}."
        for part in ("weight", "bias"):
            three = [weights[f"{layer}attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            taken[f"{ours}attention.query_key_value.{part}"] = torch.cat(three)
        taken |= pair(f"{ours}attention.output", f"{layer}attention.output.dense")
        taken |= pair(f"{ours}attention_norm", f"{layer}attention.output.LayerNorm")
        taken |= pair(f"{ours}feed_forward.0", f"{layer}intermediate.dense")
        taken |= pair(f"{ours}feed_forward.2", f"{layer}output.dense")
        taken |= pair(f"{ours}feed_forward_norm", f"{layer}output.LayerNorm")
    model.load_state_dict(taken)
    return theirs


def test_the_logits_are_those_of_bert_with_the_same_weights() -> None:
    model = network(**BERT)
    theirs, (rows, length) = bert(model), batch()
    mask = (torch.arange(LENGTH) < length[:, None]).long()
    expected = theirs(input_ids=rows.long(), attention_mask=mask).logits
    torch.testing.assert_close(model(rows, length), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1


def test_the_attention_that_is_drawn_is_berts() -> None:
    model = network(**BERT)
    theirs, (rows, length) = bert(model), batch()
    theirs.set_attn_implementation("eager")
    mask = (torch.arange(LENGTH) < length[:, None]).long()
    expected = theirs(input_ids=rows.long(), attention_mask=mask, output_attentions=True).attentions
    weights = model.attention_weights(rows, length)
    assert weights.shape == (len(TEXTS), LAYERS, HEADS, LENGTH, LENGTH)
    torch.testing.assert_close(weights, torch.stack(expected, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
def test_the_width_of_the_padding_does_not_change_the_logits(norm: str, pool: str, positions: str) -> None:
    model = network(norm=norm, pool=pool, positions=positions, length=40)
    for parameter in model.parameters():
        parameter.data *= 0.5
    (rows, length), wide = batch(), model(*batch(40))
    torch.testing.assert_close(model(*batch(12)), wide, rtol=0, atol=1e-6)
    for row, n in enumerate(length.tolist()):
        torch.testing.assert_close(model(rows[row : row + 1, :n], length[row : row + 1])[0], wide[row], rtol=0, atol=1e-6)


def test_what_stands_in_the_padding_is_never_read() -> None:
    model, (rows, length) = network(), batch()
    other = torch.where(torch.arange(LENGTH) < length[:, None], rows, 5)
    torch.testing.assert_close(model(rows, length), model(other, length), rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned"])
def test_the_order_of_words_counts_only_where_tokens_have_places(positions: str) -> None:
    model, (rows, length) = network(positions=positions, pool="mean"), batch()
    text, n = rows[2:3], length[2:3]
    other = text.clone()
    other[0, : int(n)] = text[0, torch.randperm(int(n), generator=torch.Generator().manual_seed(3))]
    assert not torch.equal(text, other)
    change = (model(text, n) - model(other, n)).abs().max().item()
    assert change < 1e-5 if positions == "none" else change > 1e-2


def test_without_positions_the_blocks_turn_permuted_tokens_into_permuted_outputs() -> None:
    model = network(positions="none")
    x, order = torch.randn(2, 7, WIDTH), torch.tensor([3, 1, 6, 0, 5, 2, 4])
    for block in model.blocks:
        torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=0, atol=1e-5)


def test_sines_meet_vectors_that_are_enlarged_by_the_root_of_the_width() -> None:
    model, (rows, length) = network(positions="sinusoidal"), batch()
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda module, given, output: seen.append(given[0]))
    model(rows, length)
    expected = model.embedding.weight[rows.long()] * WIDTH**0.5 + sinusoids(LENGTH, WIDTH)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_the_mean_is_taken_over_a_texts_own_tokens() -> None:
    model, (rows, length) = network(pool="mean"), batch()
    seen: list[torch.Tensor] = []
    model.last_norm.register_forward_hook(lambda module, given, output: seen.append(output))
    logits = model(rows, length)
    means = torch.stack([seen[0][row, :n].mean(0) for row, n in enumerate(length.tolist())])
    torch.testing.assert_close(logits, model.head(means), rtol=0, atol=1e-5)


def test_word_dropout_silences_whole_tokens_while_training_only() -> None:
    model = network(word_dropout=0.5, positions="none")
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda module, given, output: seen.append(given[0]))
    rows, length = torch.randint(3, 9, (200, 16), dtype=torch.int32), torch.full((200,), 16)
    model.train()(rows, length)
    model.eval()(rows, length)
    silent = (seen[0] == 0).all(2)
    assert silent.double().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(seen[0][~silent], 2 * seen[1][~silent])


def test_weights_begin_as_those_of_bert_do() -> None:
    torch.manual_seed(0)
    model = Transformer(width=128, positions="learned").network(ENCODING)
    assert isinstance(model, EncoderClassifier)
    for weight in (model.embedding.weight, model.positions.table, model.blocks[0].attention.query_key_value.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_heads_that_cannot_share_the_width_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"model\.width=64 cannot be shared by model\.heads=5"):
        Transformer(width=64, heads=5)


class Stored:
    """Rows in memory."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["label"])

    def take(self, index: np.ndarray, columns: Any = None) -> dict[str, np.ndarray]:
        return {name: self.columns[name][index] for name in columns or self.columns}


@torch.no_grad()
def test_the_run_page_shows_where_each_head_looks_in_one_text() -> None:
    workload = Transformer(width=WIDTH, heads=HEADS, hidden=HIDDEN)
    words = " ".join(["good", "bad", "film"] * 20)
    raw = {"text": np.array([*TEXTS, words], dtype=object), "label": np.array(["no", "so so", "yes", "no", "yes", "no"])}
    stored, model = Stored(workload.encode(raw, ENCODING)), network().eval()
    said = np.full((6, 3), 0.3)
    said[[0, 2, 5]] = [[0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0.95, 0.0, 0.05]]  # surer of the others, but the third has a length to read
    figures = workload.figures(model, {"probabilities": said}, stored, ENCODING)
    assert set(figures) == {"confusion_matrix", "worst_mistakes", "attention"}
    panels = [axes for axes in figures["attention"].axes if axes.images]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["[CLS]", *TEXTS[2].split()]
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == ["[CLS]", *TEXTS[2].split()]
    weights = model.attention_weights(*(each[2:3] for each in batch(12)))[0, -1]
    assert len(panels) == HEADS
    for panel, weights_TT in zip(panels, weights.numpy(), strict=True):
        np.testing.assert_allclose(panel.images[0].get_array(), weights_TT, atol=1e-6)
