"""How language models are judged: the loss of each token that a window predicts, and the perplexity of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..judging import Judged, Judging, Score
from . import tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# N windows, T tokens that a window predicts

_MOST_NATS = 700.0


def _perplexity(loss: float) -> float:
    """The exponential of the loss; of a loss beyond 700 nats, the largest that is a number."""
    return math.exp(min(loss, _MOST_NATS))


class TokenJudging(Judging):
    """Windows lie end to end, so each token counts once; neighbours are parts of one text, so they are not drawn one by one."""

    derived: ClassVar[Mapping[str, tuple[str, Callable[[float], float]]]] = {"perplexity": ("loss", _perplexity)}

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = tokenizer

    @property
    def span(self) -> int:
        """The last window reaches back into the one before it."""
        return 2

    @property
    def told_by(self) -> None:
        """A text is stored as its tokens, which are not the source's rows."""

    def judge(self, outputs: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray]) -> Judged:
        fresh_NT, token_NT = examples["fresh"], examples["token"][:, 1:]
        count_N = fresh_NT.sum(1).astype(np.float64)
        nll_NT, correct_NT = outputs["nll"].astype(np.float64), outputs["correct"].astype(np.float64)
        scores = {"loss": Score((nll_NT * fresh_NT).sum(1), count_N), "accuracy": Score((correct_NT * fresh_NT).sum(1), count_N)}
        return Judged({"truth": token_NT, "fresh": fresh_NT, "nll": outputs["nll"]}, scores)

    def translated(self, judged: Judged, by: Judging) -> Judged:
        if not isinstance(by, TokenJudging) or by._tokenizer != self._tokenizer:
            raise ValueError("it cuts a text into other tokens, so losses per token cannot be compared")
        return judged

    def table(self, judged: Judged) -> dict[str, Any]:
        loss, accuracy = judged.scores["loss"], judged.scores["accuracy"]
        return {
            "window": np.arange(len(judged)),
            "tokens": loss.count.astype(np.int64),
            "loss": loss.total / loss.count,
            "perplexity": np.exp(loss.total / loss.count),
            "accuracy": accuracy.total / accuracy.count,
            "text": [tokens.text(self._tokenizer, row_T.tolist()) for row_T in judged.columns["truth"]],
        }

    def figures(self, judged: Judged) -> dict[str, Figure]:
        from .figures import loss_by_position

        return {"loss_by_position": loss_by_position(judged.columns["nll"])}
