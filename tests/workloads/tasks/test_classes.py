"""Labels, scores and mistakes of any classifier, each worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from workloads.base import DataError
from workloads.mlp import TabularMLP
from workloads.tasks.classes import Labels, class_index, labels_in, labels_of, worst_mistakes
from workloads.tasks.tabular_classification import TableEncoding

TASK = TabularMLP()
LEARNT = TableEncoding(classes=("cat", "dog"), features=("age",), mean=(0.0,), deviation=(1.0,))


def names(stated: tuple[str, ...], found: Iterable[Any]) -> tuple[str, ...]:
    return gathered(*(np.array([label], dtype=object) for label in found)).names(stated)


def gathered(*batches: np.ndarray) -> Labels:
    labels = Labels()
    for _ in labels.of({"label": batch} for batch in batches):
        pass
    return labels


class Stored:
    """Prepared rows that have nothing but a label."""

    def __init__(self, *label: int) -> None:
        self.label = np.array(label, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {"label": self.label[index]}


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.array([3, 1, 3], np.uint8), {1, 3}),
        (np.array(["b", "a", "b"]), {"a", "b"}),
        (np.array(["b", "a", "c"], dtype=object), {"a", "b", "c"}),
        (np.array([True, False]), {True, False}),
        (np.array([2.0, 1.0]), {1.0, 2.0}),
    ],
    ids=["numbers", "strings", "objects", "bool", "floats"],
)
def test_labels_are_found_as_plain_values(labels: np.ndarray, found: set) -> None:
    assert labels_in(labels) == found
    assert {type(label) for label in labels_in(labels)} == {type(label) for label in found}


@pytest.mark.parametrize(
    "labels",
    [np.array(["a", "b", None], dtype=object), np.array([0.0, 1.0, np.nan]), np.array(["a", "b", np.nan], dtype=object)],
    ids=["None", "nan", "nan among strings"],
)
def test_a_missing_label_is_refused_by_row_when_learning_and_when_encoding(labels: np.ndarray) -> None:
    for use in (labels_in, lambda labels: class_index(labels, ("a", "b"))):
        with pytest.raises(DataError, match="column label: is missing") as error:
            use(labels)
        assert error.value.row == 2


def test_classes_are_in_the_order_of_the_labels_and_numbers_in_that_of_numbers() -> None:
    assert names((), {10, 9, 2}) == ("2", "9", "10")
    assert names((), {"b", "a"}) == ("a", "b")
    assert names(("z", "a"), {"a", "b"}) == ("z", "a")


@pytest.mark.parametrize(("stated", "found"), [((), {"only"}), (("only",), {"a", "b"})])
def test_one_class_is_none_to_choose_from(stated: tuple[str, ...], found: set) -> None:
    with pytest.raises(DataError, match=r"two classes.*'only'"):
        names(stated, found)


@pytest.mark.parametrize("labels", [np.array([9, 10, 2, 9]), np.array(["9", "10", "2", "9"], dtype=object)], ids=["numbers", "strings"])
def test_a_label_is_its_place_among_the_classes(labels: np.ndarray) -> None:
    index = class_index(labels, ("2", "9", "10"))
    assert index.tolist() == [1, 2, 0, 1]
    assert index.dtype == np.int64


def test_no_labels_have_no_places() -> None:
    assert class_index(np.array([], dtype=object), ("a", "b")).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [(np.array(["a", "b", "c", "b"]), "'c'"), (np.array(["a", "b", "c"], dtype=object), "'c'"), (np.array([0, 1, 7]), "7")],
)
def test_a_label_outside_the_classes_is_refused_by_value_and_row(labels: np.ndarray, shown: str) -> None:
    with pytest.raises(DataError, match=rf"column label: .*{shown} is outside the classes") as error:
        class_index(labels, ("a", "b", "0", "1"))
    assert error.value.row == 2


def test_of_many_classes_only_the_first_are_listed() -> None:
    with pytest.raises(DataError) as error:
        class_index(np.array(["new"]), tuple(f"class{each}" for each in range(1000)))
    assert "class19, …" in str(error.value)
    assert "class20" not in str(error.value)


def test_softmax_scores_are_sums_over_rows() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, math.log(7)]])
    scores = TASK.step(torch.nn.Identity(), {"features": logits, "label": torch.tensor([0, 1, 1])})
    assert scores["loss"].total.item() == pytest.approx(math.log(2) + math.log(4) + math.log(8 / 7))
    assert (int(scores["accuracy"].total), scores["accuracy"].count, scores["loss"].count) == (2, 3, 3)


def test_answers_name_the_likeliest_class_and_the_probability_of_each() -> None:
    answers = TASK.serving(LEARNT).decode({"probabilities": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)})
    assert answers == {"label": ["dog", "cat"], "probability": [0.75, 0.5], "probabilities": [[0.25, 0.75], [0.5, 0.5]]}


def test_the_majority_is_that_of_the_training_rows() -> None:
    train, test = Stored(0, 2, 2, 1, 2), Stored(0, 0, 0, 2, 1)
    assert labels_of(train).tolist() == [0, 2, 2, 1, 2]
    assert TASK.baselines(train, test, LEARNT) == {"majority_class": {"accuracy": 0.2}}


def test_the_worst_mistakes_are_wrong_rows_and_the_surest_come_first() -> None:
    truth = np.array([0, 1, 0, 2, 1, 0])
    p = np.array(
        [
            [0.1, 0.6, 0.3],  # wrong, 0.6 sure
            [0.2, 0.7, 0.1],  # right
            [0.4, 0.5, 0.1],  # wrong, 0.5
            [0.8, 0.0, 0.2],  # wrong, 0.8
            [0.0, 1.0, 0.0],  # right
            [0.0, 0.4, 0.6],  # wrong, 0.6 again: the earlier row first, though this gave the truth less
        ]
    )
    assert worst_mistakes(truth, p, 10).tolist() == [3, 0, 5, 2]
    assert worst_mistakes(truth, p, 2).tolist() == [3, 0]
    assert worst_mistakes(truth[[1, 4]], p[[1, 4]], 5).tolist() == []


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 1]),
        np.array([0.0, 1.0, 1.0]),  # what a reader makes of whole numbers beside a missing one
        np.array(["0", "1", "1"], object),
        np.array([b"0", b"1", b"1"], object),
        np.array([0, "1", b"1"], object),
    ],
)
def test_a_class_has_one_name_however_its_label_is_given(labels: np.ndarray) -> None:
    classes = names((), labels_in(labels) | {0, 1.0})
    assert classes == ("0", "1")
    assert class_index(labels, classes).tolist() == [0, 1, 1]


def test_numbers_that_are_not_whole_and_stated_names_stay_as_they_are() -> None:
    assert names(("0.5", "1"), {0.5, 1.0}) == ("0.5", "1")
    assert class_index(np.array([0.0, 1.0]), ("0.0", "1.0")).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({0.5, 1.0}, "column label: 2 different numbers in 2 training rows look like a measured quantity"),
        (set(range(51)), r"51 different numbers in 51 .*raylway train mlp_regression .*data\.columns\.target="),
    ],
    ids=["fractions", "many"],
)
def test_measured_numbers_are_no_classes_unless_stated(found: set, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        names((), found)
    stated = tuple(str(number) for number in sorted(found))
    assert names(stated, found) == stated


def test_many_names_and_numbers_that_recur_are_classes() -> None:
    assert len(names((), {f"class {number}" for number in range(60)})) == 60
    assert len(names((), set(range(50)))) == 50
    assert len(gathered(np.arange(60).repeat(5)).names(())) == 60


@pytest.mark.parametrize("odd", [[0], {"is": 0}, None, np.nan, ""])
def test_what_can_be_no_class_is_named_by_its_row(odd: object) -> None:
    labels = np.empty(3, object)
    labels[:] = ["a", "b", odd]
    for use in (labels_in, lambda labels: class_index(labels, ("a", "b"))):
        with pytest.raises(DataError, match="column label: ") as error:
            use(labels)
        assert error.value.row == 2
