"""The recurrent text classifier, beside torch's packed sequences, which take another way to read no padding."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from workloads.layers.recurrent import Recurrent
from workloads.layers.text import RecurrentClassifier
from workloads.rnn_text import RecurrentText
from workloads.tasks import tokens
from workloads.tasks.text_classification import TextEncoding

TEXTS = ["a good film", "", "not a good film at all , but a bad one", "bad", "a film"]
ENCODING = TextEncoding(classes=("no", "so so", "yes"), tokenizer=tokens.learn("words", iter([TEXTS]), vocabulary=50))
LENGTHS = [4, 1, 12, 2, 3]
CELLS = ("lstm", "gru", "rnn")


def network(**settings: Any) -> RecurrentClassifier:
    torch.manual_seed(0)
    made = RecurrentText.model_validate({"embedding": 5, "width": 7} | settings).network(ENCODING)
    assert isinstance(made, RecurrentClassifier)
    return made


def batch(width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    rows, lengths = tokens.numbers(ENCODING.tokenizer, TEXTS, length=width)
    return torch.from_numpy(rows), torch.from_numpy(lengths)


def torchs(model: RecurrentClassifier, cell: str, x: torch.Tensor, length: torch.Tensor, *, bidirectional: bool) -> torch.Tensor:
    """The outputs of torch's own stack of layers on packed sequences, with the weights of `model`."""
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]
    reference = kind(x.shape[2], 7, len(model.recurrent.forwards), batch_first=True, bidirectional=bidirectional)
    for direction, layers in (("", model.recurrent.forwards), ("_reverse", model.recurrent.backwards)):
        for number, layer in enumerate(layers):
            for name, weight in [*layer.named_parameters(), *layer.named_buffers()]:
                getattr(reference, f"{name[:-1]}{number}{direction}").data = weight.data
    packed = pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(reference(packed)[0], batch_first=True, padding_value=0.0)[0]


@pytest.mark.parametrize(("cell", "layers", "bidirectional"), [*product(CELLS, (1, 2), (True, False))])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_the_logits_are_those_of_packed_sequences(cell: str, layers: int, bidirectional: bool, pool: str) -> None:
    model = network(cell=cell, layers=layers, bidirectional=bidirectional, pool=pool)
    rows, length = batch()
    assert length.tolist() == LENGTHS
    outputs = torchs(model, cell, model.embedding(rows), length, bidirectional=bidirectional)
    own = [outputs[row, :n] for row, n in enumerate(length.tolist())]
    features = torch.stack([states.max(0).values if pool == "max" else states.sum(0) / len(states) for states in own])
    torch.testing.assert_close(model(rows, length), features @ model.head.weight.T + model.head.bias, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("cell", "pool"), [*product(CELLS, ("max", "mean"))])
def test_the_width_of_the_padding_does_not_change_the_logits(cell: str, pool: str) -> None:
    model = network(cell=cell, layers=2, pool=pool)
    narrow, wide = model(*batch(12)), model(*batch(40))
    torch.testing.assert_close(narrow, wide, rtol=0, atol=1e-6)
    for row, n in enumerate(LENGTHS):
        alone = model(batch()[0][row : row + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(alone[0], wide[row], rtol=0, atol=1e-6)


def test_what_stands_in_the_padding_is_never_read() -> None:
    model, (rows, length) = network(layers=2), batch()
    other = torch.where(torch.arange(16) < length[:, None], rows, 5)
    assert torch.equal(model(rows, length), model(other, length))


def test_a_second_direction_sees_what_comes_later() -> None:
    x, other = torch.zeros(1, 6, 3), torch.cat([torch.zeros(1, 5, 3), torch.ones(1, 1, 3)], 1)
    layer = Recurrent("gru", 3, 4, bidirectional=True)
    change = (layer(x, torch.tensor([6]))[0] - layer(other, torch.tensor([6]))[0])[0, 0]
    assert not change[:4].any()
    assert change[4:].all()


def test_word_dropout_silences_whole_tokens_while_training_only() -> None:
    model = network(word_dropout=0.5, embedding=8)
    seen: list[torch.Tensor] = []
    model.recurrent.forwards[0].register_forward_hook(lambda module, given, output: seen.append(given[0]))
    rows = torch.randint(3, 9, (200, 20), dtype=torch.int32)
    model.train()(rows, torch.full((200,), 20))
    model.eval()(rows, torch.full((200,), 20))
    training, serving = seen
    silent = (training == 0).all(2)
    assert silent.double().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(training[~silent], 2 * serving[~silent])


def test_dropout_silences_inputs_of_layers_and_head_while_training_only() -> None:
    model = network(dropout=0.4, embedding=40, width=40, layers=2, bidirectional=False)
    seen: list[torch.Tensor] = []
    for layer in model.recurrent.forwards:
        layer.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    rows = torch.randint(3, 9, (200, 20), dtype=torch.int32)
    model.train()(rows, torch.full((200,), 20))
    shares = [(x == 0).double().mean().item() for x in seen]
    assert shares == pytest.approx([0.4, 0.4], abs=0.03)
    model.eval()
    assert torch.equal(model(rows, torch.full((200,), 20)), model(rows, torch.full((200,), 20)))


def test_the_number_of_parameters_is_that_of_the_equations() -> None:
    words, embedding, width = tokens.size(ENCODING.tokenizer), 5, 7
    for cell, gates in zip(CELLS, (4, 3, 1), strict=True):
        biases = 2 if cell == "gru" else 1  # as in Keras
        direction = gates * (embedding * width + width * width + biases * width)
        expected = words * embedding + 2 * direction + 3 * (2 * width + 1)
        assert sum(parameter.numel() for parameter in network(cell=cell).parameters()) == expected


def test_bf16_answers_about_the_same_for_every_cell() -> None:
    for cell in CELLS:
        model, given = network(cell=cell), batch()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(*given)
        np.testing.assert_allclose(rounded.float().detach().numpy(), model(*given).detach().numpy(), atol=0.02)
