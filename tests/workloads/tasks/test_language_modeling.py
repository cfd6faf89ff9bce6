"""Texts as tokens and back, each token scored once, the naive answer, and what a network writes: against tables and plain loops."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from workloads.base import DataError
from workloads.judging import metrics
from workloads.layers.text import Decoder, write
from workloads.tasks import tokens
from workloads.tasks.language_modeling import LanguageEncoding, LanguageModeling, TokenJudging

LINES = ["to be,\n", "\n", "or not  to be.\r\n", "\tthät is — the 問 🙂\n", "no end"]
STRIDES = [None, 1, 3, 50]


class Stored:
    """Stored tokens in memory."""

    def __init__(self, token_N: Sequence[int]) -> None:
        self._token_N = np.array(token_N, np.int32)

    def __len__(self) -> int:
        return len(self._token_N)

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {"token": self._token_N[index]}


class Bigrams(nn.Module):
    """A network that looks at the last token only, and says of the next one what its table says."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table_VV = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0)))

    def forward(self, token_BT: Tensor, place_B: Tensor | None = None) -> Tensor:
        logits_BTV = self.table_VV[token_BT]
        return logits_BTV if place_B is None else logits_BTV[torch.arange(len(token_BT)), place_B]


class Task(LanguageModeling):
    """The task with that network."""

    def network(self, encoding: LanguageEncoding) -> nn.Module:
        return Bigrams(tokens.size(encoding.tokenizer))


def column(texts: Sequence[Any]) -> dict[str, np.ndarray]:
    return {"text": np.array(texts, dtype=object)}


def learnt(task: Task, texts: Sequence[str] = LINES) -> LanguageEncoding:
    return task.fit([column(texts)])


def small_decoder(window: int, vocabulary: int = 30) -> Decoder:
    """Of weights so large that what it writes depends on all that it has read."""
    torch.manual_seed(0)
    made = Decoder(vocabulary, window=window, layers=2, heads=2, width=16)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.2)
    return made.eval()


# ---- texts and tokens


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_text_comes_back_from_its_tokens(kind: str) -> None:
    task = Task(tokens=kind)
    encoding = learnt(task)
    stored = task.encode(column(LINES), encoding)["token"]
    assert stored.dtype == np.int32
    assert tokens.text(encoding.tokenizer, stored.tolist()) == "".join(LINES)


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_text_has_the_same_tokens_however_many_rows_are_encoded_at_once(kind: str) -> None:
    task = Task(tokens=kind)
    encoding = learnt(task)
    apart = [task.encode(column([line]), encoding)["token"] for line in LINES]
    np.testing.assert_array_equal(np.concatenate(apart), task.encode(column(LINES), encoding)["token"])


def test_the_characters_of_a_text_are_its_tokens_and_a_new_one_is_unknown() -> None:
    task = Task()
    encoding = learnt(task, ["abca\n"])
    assert tokens.size(encoding.tokenizer) == len({*"abc\n", tokens.UNKNOWN})
    stored = task.encode(column(["b?a\n"]), encoding)["token"]
    assert len(stored) == 4
    assert tokens.text(encoding.tokenizer, stored.tolist()) == f"b{tokens.UNKNOWN}a\n"


def test_byte_pairs_know_every_character() -> None:
    task = Task(tokens="bpe")
    encoding = learnt(task, ["abc\n"])
    assert tokens.text(encoding.tokenizer, task.encode(column(["né 問🙂"]), encoding)["token"].tolist()) == "né 問🙂"


def test_the_vocabulary_is_the_commonest_characters() -> None:
    encoding = learnt(Task(vocabulary=3), ["aaaabbbcc\n"])
    assert set(tokens.names(encoding.tokenizer, range(3))) == {tokens.UNKNOWN, "a", "b"}


def test_byte_pairs_need_room_for_every_byte() -> None:
    with pytest.raises(ValueError, match=r"model\.vocabulary=255 is too small for byte pairs, which begin with 256 bytes"):
        Task(tokens="bpe", vocabulary=255)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(None, "column text: is missing"), (float("nan"), "column text: is missing"), (7, "7 is not a text"), ("a\ud800", "half a character")],
)
@pytest.mark.parametrize("reading", ["fit", "encode"])
def test_what_is_no_text_is_refused_by_column_and_row(reading: str, value: Any, sentence: str) -> None:
    task = Task()
    encoding, raw = learnt(task), column(["a", "b", value])
    with pytest.raises(DataError, match=sentence) as refused:
        task.fit([column(["first"]), raw]) if reading == "fit" else task.encode(raw, encoding)
    assert refused.value.row == 2


def test_what_is_stored_depends_on_the_cut_into_tokens_and_not_on_windows_or_samples() -> None:
    stored = Task().task_settings()
    assert stored != Task(tokens="bpe").task_settings() != Task(tokens="bpe", vocabulary=300).task_settings()
    assert stored == Task(window=9, stride=2, prompt="a", sample_tokens=5, temperature=0, top_k=3).task_settings()


# ---- windows


@given(st.integers(2, 80), st.integers(1, 20))
def test_scoring_predicts_every_token_but_the_first_once_and_each_after_the_one_before_it(count: int, window: int) -> None:
    if count <= window:
        return
    examples = Task(window=window).examples(Stored(range(count)), training=False)
    taken = examples.take(np.arange(len(examples)))
    assert taken["token"].shape == (len(examples), window + 1)
    assert taken["token"][:, 1:][taken["fresh"]].tolist() == list(range(1, count))
    assert (np.diff(taken["token"], axis=1) == 1).all()


@pytest.mark.parametrize("stride", STRIDES)
def test_training_windows_begin_at_every_stride(stride: int | None) -> None:
    examples = Task(window=8, stride=stride).examples(Stored(range(100)), training=True)
    begin = list(range(0, 100 - 8, stride or 8))
    assert examples.take(np.arange(len(examples)))["token"].tolist() == [list(range(first, first + 9)) for first in begin]


@pytest.mark.parametrize("training", [True, False])
def test_a_text_shorter_than_a_window_is_refused_and_one_as_long_is_not(training: bool) -> None:
    task = Task(window=8)
    assert len(task.examples(Stored(range(9)), training=training)) == 1
    with pytest.raises(DataError, match=r"8 tokens are too few: model\.window=8 takes 9 at least"):
        task.examples(Stored(range(8)), training=training)


# ---- scores


def batch(rows: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(taken) for name, taken in rows.take(np.arange(len(rows))).items()}


@pytest.mark.parametrize("training", [True, False])
def test_loss_and_accuracy_are_those_of_the_table_looked_up_token_by_token(training: bool) -> None:
    model, token_N = Bigrams(5), np.random.default_rng(0).integers(0, 5, 60)
    scores = Task(window=7).step(model, batch(Task(window=7).examples(Stored(token_N), training=training)))
    asked = 7 * (59 // 7) if training else 59
    p_VV = np.exp(model.table_VV.detach().numpy().astype(float))
    p_VV /= p_VV.sum(1, keepdims=True)
    pairs = list(itertools.pairwise(token_N[: asked + 1].tolist()))
    assert float(scores["loss"].count) == float(scores["accuracy"].count) == asked
    assert scores["loss"].total.item() / asked == pytest.approx(-np.mean([math.log(p_VV[pair]) for pair in pairs]), abs=1e-5)
    assert scores["accuracy"].value == pytest.approx(np.mean([p_VV[before].argmax() == after for before, after in pairs]))


def test_a_worker_without_rows_adds_nothing() -> None:
    task, rows = Task(window=7), Task(window=7).examples(Stored(range(20)), training=False)
    nothing = {name: torch.from_numpy(taken) for name, taken in rows.take(np.arange(0)).items()}
    model = small_decoder(window=7)
    with torch.no_grad():
        scores = task.step(model, nothing)
        assert task.predict(model, nothing)["nll"].shape == (0, 7)
    assert {(float(mean.total), float(mean.count)) for mean in scores.values()} == {(0.0, 0.0)}


def test_the_predicted_likelihoods_sum_to_the_loss() -> None:
    task, model = Task(window=7), Bigrams(5)
    given = batch(task.examples(Stored(np.random.default_rng(0).integers(0, 5, 60)), training=False))
    with torch.no_grad():
        nll_BT, loss = task.predict(model, given)["nll"], task.step(model, given)["loss"]
    assert nll_BT.shape == (9, 7)
    assert nll_BT[given["fresh"]].sum().item() == pytest.approx(loss.total.item(), rel=1e-6)


@pytest.mark.parametrize("stride", STRIDES)
def test_the_naive_answer_is_the_share_of_each_token_counted_by_hand(stride: int | None) -> None:
    task, encoding = Task(window=4, stride=stride), learnt(Task(), ["abcde"])
    rng = np.random.default_rng(0)
    train_N, test_N = rng.integers(0, 5, 120), rng.integers(0, 6, 30)
    rows = task.examples(Stored(train_N), training=True), task.examples(Stored(test_N), training=False)
    step, seen = stride or 4, Counter(dict.fromkeys(range(6), 1))
    for begin in range(0, 120 - 4, step):
        seen.update(train_N[begin + 1 : begin + 5].tolist())
    p = {token: times / seen.total() for token, times in seen.items()}
    commonest = max(p, key=lambda token: p[token])
    scores = task.baselines(*rows, encoding)["unigram"]
    assert scores["loss"] == pytest.approx(-np.mean([math.log(p[token]) for token in test_N[1:]]))
    assert scores["accuracy"] == pytest.approx(np.mean(test_N[1:] == commonest))


# ---- what is written


def by_hand(model: nn.Module, begun: list[int], count: int, window: int, choose: Callable[[Tensor], int]) -> list[int]:
    """Token after token, one text at a time, with no more context than the window."""
    said = list(begun)
    for _ in range(count):
        with torch.no_grad():
            said.append(choose(model(torch.tensor([said[-window:]]))[0, -1]))
    return said[len(begun) :]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    token_BP = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int32)
    for row, its in enumerate(rows):
        token_BP[row, : len(its)] = torch.tensor(its)
    return token_BP, torch.tensor([len(row) for row in rows])


BEGUN = ([3], [1, 2, 3, 4, 5], [9] * 11, [4, 8, 15, 16, 23, 1, 1, 2])


def test_the_likeliest_tokens_are_those_of_a_plain_loop_also_beyond_the_window() -> None:
    model = small_decoder(window=11)
    with torch.no_grad():
        written = write(model, *padded(BEGUN), tokens=30, window=11, temperature=0, top_k=None)
    assert written.tolist() == [by_hand(model, begun, 30, 11, lambda logits: int(logits.argmax())) for begun in BEGUN]
    assert len({tuple(row) for row in written.tolist()}) == len(BEGUN)


def test_the_drawn_tokens_are_those_at_which_a_plain_loop_passes_the_same_random_numbers() -> None:
    model = small_decoder(window=11)
    with torch.no_grad():
        written = write(model, *padded(BEGUN), tokens=30, window=11, temperature=1.5, top_k=4, seed=5)
    for begun, row in zip(BEGUN, written.tolist(), strict=True):
        chances = iter(torch.rand(30, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist())

        def choose(logits_V: Tensor, chances: Any = chances) -> int:
            likeliest = sorted(logits_V.topk(4).indices.tolist())
            p = np.exp(logits_V[likeliest].double().numpy() / 1.5)
            return likeliest[int(np.searchsorted(np.cumsum(p / p.sum()), next(chances), side="right"))]

        assert row == by_hand(model, begun, 30, 11, choose)


def test_tokens_are_drawn_as_often_as_the_network_says() -> None:
    class Fixed(nn.Module):
        def forward(self, token_BT: Tensor, place_B: Tensor) -> Tensor:
            return torch.tensor([[2.0, 0.0, -1.0, 1.0]]).expand(len(token_BT), 4)

    count = 4000
    for temperature, top_k in ((1.0, None), (0.5, None), (1.0, 2)):
        written = write(Fixed(), *padded([[0]]), tokens=count, window=2, temperature=temperature, top_k=top_k)
        p = np.exp(np.array([2.0, 0.0, -1.0, 1.0]) / temperature) * (np.array([1, 0, 0, 1]) if top_k else 1)
        shares = np.bincount(written[0].numpy(), minlength=4) / count
        np.testing.assert_allclose(shares, p / p.sum(), rtol=0, atol=4 * math.sqrt(0.25 / count))


# ---- a registered model


def answers(task: Task, model: nn.Module, encoding: LanguageEncoding, given: Any) -> list[str]:
    encoded = {name: torch.from_numpy(array) for name, array in task.serving(encoding).inputs(given).items()}
    with torch.no_grad():
        outputs = {name: output.numpy() for name, output in task.serving(encoding).respond(model, encoded).items()}
    decoded = task.serving(encoding).decode(outputs)
    json.dumps(decoded)
    return decoded["text"]


PROMPTS = ["to be", "", "or not to\nbe, that", "?", "the \n\n\n", *(f"is {number}" for number in range(30))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_answer_to_a_prompt_does_not_depend_on_the_prompts_beside_it(temperature: float) -> None:
    task = Task(window=12, temperature=temperature, sample_tokens=20)
    encoding = learnt(task)
    model = small_decoder(window=12, vocabulary=tokens.size(encoding.tokenizer))
    together = answers(task, model, encoding, pd.DataFrame({"prompt": PROMPTS}))
    assert together == [answers(task, model, encoding, [prompt])[0] for prompt in PROMPTS]
    assert together == answers(task, model, encoding, PROMPTS)
    assert len(set(together)) > 5


def test_an_empty_prompt_is_answered_as_the_settings_prompt() -> None:
    task = Task(prompt="or", sample_tokens=9)
    encoding = learnt(task)
    model = task.network(encoding)
    assert answers(task, model, encoding, [""]) == answers(task, model, encoding, ["or"]) != answers(task, model, encoding, ["to"])


def test_of_a_long_prompt_the_last_window_counts() -> None:
    task = Task(window=6)
    encoding = learnt(task)
    encoded = task.serving(encoding).inputs(["to be, or not to be"])
    assert tokens.text(encoding.tokenizer, encoded["token"][0].tolist()) == " to be"


def test_a_prompt_of_several_lines_has_the_tokens_that_they_have_in_training() -> None:
    task = Task(tokens="bpe", vocabulary=300)
    encoding = learnt(task, ["a b\n", "   c\n"] * 9)
    lines = ["a b\n", "\n", "   c\n", "a"]
    assert task.serving(encoding).inputs(["".join(lines)])["token"][0].tolist() == task.encode(column(lines), encoding)["token"].tolist()


def test_no_prompts_give_no_answers() -> None:
    task = Task()
    encoding = learnt(task)
    assert answers(task, task.network(encoding), encoding, pd.DataFrame({"prompt": []})) == []


@pytest.mark.parametrize("value", [None, float("nan"), pd.NA, 7])
@pytest.mark.parametrize(
    "make", [lambda values: values, lambda values: pd.DataFrame({"prompt": values}), lambda values: {"prompt": values}]
)
def test_a_prompt_that_is_missing_or_no_text_is_refused_by_column_and_row(value: Any, make: Callable[[list[Any]], Any]) -> None:
    task = Task()
    with pytest.raises(DataError, match=r"column prompt: (is missing|7 is not a text); give a string") as refused:
        task.serving(learnt(task)).inputs(make(["a", value]))
    assert refused.value.row == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (pd.DataFrame({"promt": ["a"]}), "there is no column 'prompt'; did you mean promt\\?; columns: promt"),
        ("one text", "a list of texts, was expected, not str"),
    ],
)
def test_what_holds_no_prompts_is_refused(given: Any, sentence: str) -> None:
    task = Task()
    with pytest.raises(DataError, match=sentence):
        task.serving(learnt(task)).inputs(given)


# ---- the run page


def test_a_sample_is_the_prompt_and_its_answer_and_leaves_no_trace() -> None:
    task = Task(prompt="to", window=12, sample_tokens=15)
    encoding = learnt(task)
    model = small_decoder(window=12, vocabulary=tokens.size(encoding.tokenizer)).train()
    model.dropout.p = 0.5
    before = torch.get_rng_state()
    said = task.serving(encoding).sample(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert said == "to" + answers(task, model.eval(), encoding, ["to"])[0]
    task.serving(encoding).sample(model)
    assert not model.training


def test_figures_show_the_loss_of_each_position_and_the_passage_itself() -> None:
    task = Task(window=5)
    encoding = learnt(task)
    test = task.examples(Stored(task.encode(column(LINES), encoding)["token"]), training=False)
    model = task.network(encoding)
    with torch.no_grad():
        outputs = {name: output.numpy() for name, output in task.predict(model, batch(test)).items()}
    figures = task.figures(model, outputs, test, encoding)
    line = figures["loss_by_position"].axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([range(1, 6), outputs["nll"].mean(0)]), rtol=1e-5)
    shown = "".join(text.get_text() for text in figures["passage"].axes[0].texts)
    assert shown == "".join(LINES)[1:].replace("\n", "↵").replace("\r", "·").replace("\t", "·")


# ---- scores of each window


TOKENIZER = tokens.learn("characters", iter([["abcab\n"]]), vocabulary=8)


def judged():
    """Two windows of three tokens, of which the second repeats two of the first."""
    fresh = np.array([[True, True, True], [False, False, True]])
    examples = {"token": np.array([[1, 2, 3, 1], [3, 1, 2, 3]]), "fresh": fresh}
    nll = np.array([[1.0, 2.0, 3.0], [9.0, 9.0, 4.0]], np.float32)
    return TokenJudging(TOKENIZER).judge({"nll": nll, "correct": np.array([[1, 0, 1], [1, 1, 0]], np.uint8)}, examples)


def test_a_token_that_two_windows_hold_counts_once():
    found = metrics(TokenJudging(TOKENIZER), judged())
    assert found == {"loss": pytest.approx(2.5), "accuracy": pytest.approx(0.5), "perplexity": pytest.approx(math.exp(2.5))}


def test_each_window_is_a_row_with_its_text():
    table = TokenJudging(TOKENIZER).table(judged())
    assert table["tokens"].tolist() == [3, 1]
    assert table["loss"].tolist() == [2.0, 4.0]
    assert [len(text) for text in table["text"]] == [3, 3]


def test_models_of_other_tokens_are_no_rivals():
    other = tokens.learn("characters", iter([["xyz\n"]]), vocabulary=8)
    with pytest.raises(ValueError, match="other tokens, so losses per token cannot be compared"):
        TokenJudging(TOKENIZER).aligned(judged(), TokenJudging(other))
