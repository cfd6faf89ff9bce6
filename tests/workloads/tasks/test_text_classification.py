"""What becomes of texts and labels, from a source and from a caller of a registered model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipelines.data import preparation
from tests import runs
from workloads.base import Arrays, DataError
from workloads.rnn_text import RecurrentText
from workloads.tasks import tokens
from workloads.tasks.text_classification import TextClassification, TextEncoding
from workloads.tasks.tokens import texts_in


def column(*values: Any) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


RAW = {"text": column("A good film.", "", "a bad film", "not a good film at all"), "label": column("yes", "no", "no", "no")}
TASK = RecurrentText(frequency=1, length=6)


def learnt(task: TextClassification = TASK) -> TextEncoding:
    return task.fit(iter([{name: values[:2] for name, values in RAW.items()}, {name: values[2:] for name, values in RAW.items()}]))


def names(encoding: TextEncoding, encoded: Arrays) -> list[list[str]]:
    return [tokens.names(encoding.tokenizer, row[:n].tolist()) for row, n in zip(encoded["tokens"], encoded["length"], strict=True)]


def test_texts_become_tokens_and_labels_become_numbers() -> None:
    encoding = learnt()
    encoded = TASK.encode(RAW, encoding)
    assert encoding.classes == ("no", "yes")
    assert names(encoding, encoded) == [
        ["[CLS]", "a", "good", "film", "."],
        ["[CLS]"],
        ["[CLS]", "a", "bad", "film"],
        ["[CLS]", "not", "a", "good", "film", "at"],
    ]
    assert encoded["label"].tolist() == [1, 0, 0, 0]
    assert (encoded["tokens"].dtype, encoded["tokens"].shape, encoded["length"].dtype) == (np.int32, (4, 6), np.int64)


def test_settings_say_what_a_text_is_cut_into_and_what_is_known() -> None:
    task = RecurrentText(tokens="wordpiece", frequency=2, vocabulary=60, length=5)
    encoding = learnt(task)
    assert names(encoding, task.encode({"text": column("good film")}, encoding)) == [["[CLS]", "good", "film", "[SEP]"]]
    rare = RecurrentText(frequency=2, vocabulary=8)
    assert names(learnt(rare), rare.encode({"text": column("a bad film")}, learnt(rare))) == [["[CLS]", "a", "[UNK]", "film"]]
    assert tokens.size(learnt(RecurrentText(frequency=1, vocabulary=8)).tokenizer) == 8


def test_labels_count_where_no_tokenizer_is_learnt() -> None:
    class Given(RecurrentText):
        """A tokenizer that came from elsewhere."""

        def learn(self, texts: Iterator[list[str]]) -> str:
            return learnt().tokenizer

    assert learnt(Given()) == learnt()


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "column text: is missing"),
        (float("nan"), "column text: is missing"),
        (3.5, "column text: 3.5 is not a text"),
        (b"good", "column text: b'good' is not a text"),
        ("good \ud83d", r"column text: holds half a character, '\\ud83d', at place 5"),
    ],
)
def test_what_is_no_text_is_refused_by_row(kind: str, text: Any, said: str) -> None:
    task = RecurrentText.model_validate({"tokens": kind})
    raw = {"text": column("a", "b", text, "c"), "label": column("x", "y", "x", "y")}
    for refused in (lambda: task.fit(iter([RAW, raw])), lambda: task.encode(raw, learnt())):
        with pytest.raises(DataError, match=said) as caught:
            refused()
        assert caught.value.row == 2


def test_a_column_of_numbers_is_not_one_of_texts() -> None:
    with pytest.raises(DataError, match="column text: 7 is not a text"):
        texts_in(np.array([7, 8]))


def test_a_missing_label_is_refused_by_row() -> None:
    with pytest.raises(DataError, match="column label: is missing") as caught:
        TASK.fit(iter([{"text": column("a", "b"), "label": column("x", None)}]))
    assert caught.value.row == 1


def test_a_missing_text_of_a_file_is_named_by_the_files_row(tmp_path: Path) -> None:
    table = pd.DataFrame({"review": [f"text {n}" for n in range(60)], "label": ["a", "b"] * 30})
    for row in range(12):  # some of every split
        broken = table.copy()
        broken.loc[row, "review"] = None
        broken.to_parquet(tmp_path / "texts.parquet")
        source = [f"data.source={tmp_path / 'texts.parquet'}", "data.columns.text=review", "train.batch=8"]
        run = runs.load(tmp_path, *source, recipe="lstm_text")
        with pytest.raises(DataError, match=f"texts.parquet, row {row}: column text: is missing"):
            preparation.prepare(run, preparation.plan(run), preparation.in_process)


def test_the_tasks_settings_name_the_dataset_and_the_networks_do_not() -> None:
    assert set(TASK.task_settings()) == {"classes", "tokens", "vocabulary", "frequency", "length"}


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame({"text": ["a good film", ""]}),
        pd.DataFrame({"other": [1, 2], "text": pd.array(["a good film", ""], dtype="string")}),
        ["a good film", ""],
        np.array(["a good film", ""]),
        np.array([["a good film"], [""]], dtype=object),
        pd.Series(["a good film", ""]),
        [{"text": "a good film"}, {"text": ""}],
        {"text": ["a good film", ""]},
    ],
    ids=["table", "table with more", "list", "array", "one-column array", "series", "dicts", "dict of lists"],
)
def test_a_registered_model_takes_texts_in_every_usual_form(given: Any) -> None:
    encoded = TASK.serving(learnt()).inputs(given)
    assert names(learnt(), encoded) == [["[CLS]", "a", "good", "film"], ["[CLS]"]]
    assert set(encoded) == {"tokens", "length"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a good film", "a list of texts, was expected, not str"),
        (5, "a list of texts, was expected, not int"),
        (pd.DataFrame({"review": ["a"]}), "there is no column 'text'; columns: review"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "column text: was given more than once"),
        (np.array([["a", "b"]]), "there is no column 'text'; columns: 0, 1"),
        ([{"review": "a"}], "there is no column 'text'; columns: review"),
        (["a", 3], "column text: 3 is not a text"),
        (["a", None], "column text: is missing"),
        (pd.DataFrame({"text": ["a", float("nan")]}), "column text: is missing"),
        (pd.DataFrame({"text": pd.array(["a", pd.NA], dtype="string")}), "column text: is missing"),
    ],
)
def test_a_registered_model_says_what_is_wrong_with_its_input(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        TASK.serving(learnt()).inputs(given)


def test_no_texts_are_answered_with_no_rows() -> None:
    encoded = TASK.serving(learnt()).inputs(pd.DataFrame({"text": []}))
    batch = {name: torch.from_numpy(values) for name, values in TASK.collate(encoded).items()}
    assert TASK.predict(TASK.network(learnt()), batch)["probabilities"].shape == (0, 2)


def test_the_example_of_an_input_has_the_texts_and_no_labels() -> None:
    pd.testing.assert_frame_equal(TASK.serving(learnt()).example(RAW), pd.DataFrame({"text": RAW["text"].tolist()}))


class Stub(nn.Module):
    """A network whose logits say which token stands at place 1, and how long the text is."""

    def forward(self, tokens_BT: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        return torch.stack([tokens_BT[:, 1].float(), length_B.float()], 1)


def test_loss_accuracy_and_probabilities_are_those_of_a_softmax() -> None:
    batch = {"tokens": torch.tensor([[2, 5, 0], [2, 1, 3]]), "length": torch.tensor([2, 3]), "label": torch.tensor([1, 1])}
    scores, said = TASK.step(Stub(), batch), TASK.predict(Stub(), batch)["probabilities"]
    p = np.exp([[5.0, 2.0], [1.0, 3.0]])
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(said.numpy(), p, rtol=1e-6)
    assert float(scores["loss"].total) == pytest.approx(-np.log(p[:, 1]).sum())
    assert (scores["accuracy"].value, scores["loss"].count) == (0.5, 2)


def test_answers_are_read_as_labels_with_their_probabilities() -> None:
    decoded = TASK.serving(learnt()).decode({"probabilities": np.array([[0.25, 0.75], [0.5, 0.5]])})
    assert decoded == {"label": ["yes", "no"], "probability": [0.75, 0.5], "probabilities": [[0.25, 0.75], [0.5, 0.5]]}


class Stored:
    """Rows in memory."""

    def __init__(self, columns: Arrays) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["label"])

    def take(self, index: np.ndarray, columns: Any = None) -> dict[str, np.ndarray]:
        return {name: self.columns[name][index] for name in columns or self.columns}


def test_the_worst_mistakes_are_shown_as_texts() -> None:
    encoding = learnt()
    stored = Stored(TASK.encode(RAW, encoding))
    said = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])  # true: 1, 0, 0, 0; so the first is worst, then rows 1 and 3
    figures = TASK.figures(nn.Identity(), {"probabilities": said}, stored, encoding)
    assert set(figures) == {"confusion_matrix", "worst_mistakes"}
    shown = [text.get_text() for text in figures["worst_mistakes"].axes[0].texts]
    assert shown == [
        "yes, predicted no (0.90)",
        "a good film .",
        "no, predicted yes (0.80)",
        "",
        "no, predicted yes (0.70)",
        "not a good film at",
    ]


def test_the_naive_answer_is_the_commonest_class() -> None:
    stored = Stored(TASK.encode(RAW, learnt()))
    assert TASK.baselines(stored, stored, learnt()) == {"majority_class": {"accuracy": 0.75}}
