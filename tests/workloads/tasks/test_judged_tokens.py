"""Language models that are judged: each token once, and only against models that cut a text alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workloads.judging import metrics
from workloads.tasks import tokens
from workloads.tasks.judged_tokens import TokenJudging

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
        TokenJudging(TOKENIZER).translated(judged(), TokenJudging(other))
