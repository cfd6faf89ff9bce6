"""The next token of a text, after those before it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ..base import Arrays, DataError, Encoding, Headline, Mean, Rows, Serving, Workload, choose_columns
from ..judging import Judged, Judging, Score
from . import tokens
from .tokens import text_column, texts_in
from .windows import EndToEnd, Windows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor, nn


# B rows, T tokens to predict (the window), S = T + 1 with the one before them, P tokens of the longest prompt, V vocabulary

_BYTES = 256
_IGNORED = -100  # a target that torch's cross_entropy leaves out
_MOST_NATS = 700.0  # whose exponential is still a number
_COUNTED_ROWS, _WRITTEN_ROWS = 4096, 16
_PICTURED_TOKENS = 512


class LanguageEncoding(Encoding):
    """The tokenizer as its own JSON."""

    tokenizer: str


class LanguageServing(Serving):
    """Prompts in, their continuations out."""

    def sample(self, model: nn.Module) -> str:
        """The prompt of the settings and its continuation."""
        from .. import inference

        prompt = self.encode({"prompt": np.array([self.workload.prompt], object)})
        training = model.training
        written = inference.outputs(self.workload, self.respond, model, prompt, batch_rows=1)
        model.train(training)
        return self.workload.prompt + self.decode(written)["text"][0]

    def example(self, raw: Arrays) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame({"prompt": raw["text"].tolist()})

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        return ("text",) if "text" in available and "prompt" not in available else choose_columns(("prompt",), available)

    def encode(self, raw: Arrays) -> dict[str, np.ndarray]:
        [(name, prompts)] = raw.items()
        token_BP, length_B = self._begin(texts_in(prompts, name))
        return {"token": token_BP, "length": length_B}

    def inputs(self, given: Any) -> dict[str, np.ndarray]:
        """A DataFrame with a column `prompt`, or what makes one; or a list of strings.

        Of a long prompt the last `window` tokens count, an empty one is `model.prompt`, a character never met in training is [UNK].
        """
        return self.encode({"prompt": text_column(given, "prompt")})

    def respond(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`token` (B, sample_tokens): how each prompt goes on. The same for the same prompt, whatever other prompts stand beside it."""
        import torch

        from ..layers.text import write

        task = self.workload
        how = {"tokens": task.sample_tokens, "window": task.window, "temperature": task.temperature, "top_k": task.top_k}
        parts = zip(batch["token"].split(_WRITTEN_ROWS), batch["length"].split(_WRITTEN_ROWS), strict=True)
        return {"token": torch.cat([write(model, *part, **how) for part in parts])}

    def decode(self, outputs: Arrays) -> dict[str, list]:
        return {"text": [tokens.text(self.encoding.tokenizer, row) for row in outputs["token"].tolist()]}

    def _begin(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(the last tokens of each prompt, at most the window, int32 (B, P); how many they are, int64 (B,))."""
        # a prompt is cut into tokens line by line, as the training text was
        empty, window, tokenizer = self.workload.prompt, self.workload.window, self.encoding.tokenizer
        begun = [tokens.stream(tokenizer, re.findall(r".*\n|.+", prompt or empty))[-window:] for prompt in prompts]
        length_B = np.array([len(row) for row in begun], np.int64)
        token_BP = np.zeros((len(begun), length_B.max(initial=1)), np.int32)
        for row, its in enumerate(begun):
            token_BP[row, : len(its)] = its
        return token_BP, length_B


class LanguageModeling(Workload):
    """Raw rows: `text` (N,), strings that follow one another: lines, each with its line end.

    Each line is cut into tokens by itself, and the tokens of all lines are stored as one long row. Networks are called with token numbers
    (B, T) and answer with logits (B, T, V) of the token after each, without looking ahead; called with places (B,) too, with those after
    that token of each row alone (B, V). While scoring, windows lie end to end, so every token of a split but its first is predicted once.
    """

    task: ClassVar[str] = "language modelling"
    columns: ClassVar[tuple[str, ...]] = ("text",)
    ordered: ClassVar[bool] = True
    one_to_one: ClassVar[bool] = False
    sample_rows: ClassVar[int] = 4
    headline: ClassVar[Headline] = Headline("loss", "min")
    better: ClassVar[Mapping[str, Literal["max", "min"]]] = {"loss": "min", "accuracy": "max", "perplexity": "min"}
    encoding_type: ClassVar[type[Encoding]] = LanguageEncoding
    serving_type: ClassVar[type[Serving]] = LanguageServing
    requires: ClassVar[tuple[str, ...]] = ("tokenizers",)

    tokens: Literal["characters", "bpe"] = "characters"
    """Tokens of the text: characters, or byte pairs as in GPT-2."""
    vocabulary: int = Field(512, gt=1)
    """Size of the vocabulary, in tokens: the most frequent ones; byte pairs need at least 256."""
    window: int = Field(64, gt=0)
    """Context length, in tokens."""
    stride: int | None = Field(None, gt=0)
    """Tokens between the starts of two training windows; default: the window, so that an epoch holds each token once."""
    prompt: str = Field("\n", min_length=1)
    """Prompt of the samples, and of predictions for an empty prompt."""
    sample_tokens: int = Field(200, gt=0)
    """Tokens to generate, in a sample and in a registered model's prediction."""
    temperature: float = Field(0.8, ge=0)
    """Sampling temperature: 1 samples from the network's probabilities, less prefers likely tokens, 0 is greedy."""
    top_k: int | None = Field(None, gt=0)
    """Sample from this many of the likeliest tokens only; default: all."""

    @model_validator(mode="after")
    def _room_for_every_byte(self) -> LanguageModeling:
        if self.tokens == "bpe" and self.vocabulary < _BYTES:
            raise ValueError(f"model.vocabulary={self.vocabulary} is too small for byte pairs, which begin with {_BYTES} bytes")
        return self

    def check(self, raw: Arrays) -> None:
        texts_in(raw["text"])

    def fit(self, batches: Iterable[Arrays]) -> LanguageEncoding:
        texts = (texts_in(raw["text"]) for raw in batches)
        return LanguageEncoding(tokenizer=tokens.learn(self.tokens, texts, vocabulary=self.vocabulary))

    def encode(self, raw: Arrays, encoding: LanguageEncoding) -> dict[str, np.ndarray]:
        """`token` int32, of all rows in one column: not as many as there are rows."""
        return {"token": tokens.stream(encoding.tokenizer, texts_in(raw["text"]))}

    def examples(self, stored: Rows, *, training: bool) -> Rows:
        if len(stored) <= self.window:
            raise DataError(f"{len(stored):,} tokens are too few: model.window={self.window} takes {self.window + 1} at least")
        return Windows(stored, length=self.window + 1, stride=self.stride or self.window) if training else EndToEnd(stored, self.window)

    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        """Cross-entropy in nats (a sum over tokens) and accuracy of the next token."""
        from torch.nn.functional import cross_entropy

        token_BS = batch["token"].long()
        logits_BTV, target_BT = model(token_BS[:, :-1]), token_BS[:, 1:]
        count: int | Tensor = target_BT.numel()
        if "fresh" in batch:
            target_BT = target_BT.where(batch["fresh"], _IGNORED)
            count = batch["fresh"].sum()
        correct = (logits_BTV.argmax(2) == target_BT).sum()
        loss = cross_entropy(logits_BTV.flatten(0, 1).float(), target_BT.flatten(), reduction="sum", ignore_index=_IGNORED)
        return {"loss": Mean(loss, count), "accuracy": Mean(correct, count)}

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`nll` (B, T): negative log-likelihood of each token; `correct` uint8: 1 where it was the likeliest."""
        import torch
        from torch.nn.functional import cross_entropy

        token_BS = batch["token"].long()
        logits_BTV, target_BT = model(token_BS[:, :-1]).float(), token_BS[:, 1:]
        correct_BT = (logits_BTV.argmax(2) == target_BT).to(torch.uint8)
        return {"nll": cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none"), "correct": correct_BT}

    def baselines(self, train: Rows, test: Rows, encoding: LanguageEncoding) -> dict[str, dict[str, float]]:
        """The unigram model: probabilities in proportion to how often each token is predicted in training, plus one."""
        size = tokens.size(encoding.tokenizer)
        seen_V, target_V = _targets(train, size) + 1, _targets(test, size)
        loss = -(target_V * np.log(seen_V / seen_V.sum())).sum() / target_V.sum()
        return {"unigram": {"loss": float(loss), "accuracy": float(target_V[seen_V.argmax()] / target_V.sum())}}

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: LanguageEncoding) -> dict[str, Figure]:
        from . import drawing

        nll_BT = outputs["nll"]
        shown = test.take(np.arange(min(len(test), -(-_PICTURED_TOKENS // self.window))))
        token_N, nll_N = shown["token"][:, 1:][shown["fresh"]], nll_BT[: len(shown["fresh"])][shown["fresh"]]
        pieces = [tokens.text(encoding.tokenizer, [token]) for token in token_N[:_PICTURED_TOKENS].tolist()]
        return {"loss_by_position": drawing.loss_by_position(nll_BT), "passage": drawing.passage(pieces, np.exp(-nll_N[:_PICTURED_TOKENS]))}

    def judging(self, encoding: LanguageEncoding) -> Judging:
        return TokenJudging(encoding.tokenizer)

    def task_settings(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"tokens", "vocabulary"})  # no other changes what is stored


def _targets(windows: Rows, size: int) -> np.ndarray:
    """int64 (V,): how often each of `size` tokens is predicted."""
    count_V = np.zeros(size, np.int64)
    for start in range(0, len(windows), _COUNTED_ROWS):
        taken = windows.take(np.arange(start, min(start + _COUNTED_ROWS, len(windows))))
        target_BT = taken["token"][:, 1:]
        count_V += np.bincount(target_BT[taken["fresh"]] if "fresh" in taken else target_BT.reshape(-1), minlength=size)
    return count_V


class TokenJudging(Judging):
    """Windows lie end to end, so each token counts once; neighbours are parts of one text, so they are not drawn one by one."""

    derived: ClassVar[Mapping[str, tuple[str, Callable[[float], float]]]] = {
        "perplexity": ("loss", lambda loss: math.exp(min(loss, _MOST_NATS)))
    }

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = tokenizer

    @property
    def span(self) -> int:
        """The last window reaches back into the one before it."""
        return 2

    @property
    def row_offset(self) -> None:
        """A text is stored as its tokens, which are not the source's rows."""

    def judge(self, outputs: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray]) -> Judged:
        fresh_NT, token_NT = examples["fresh"], examples["token"][:, 1:]
        count_N = fresh_NT.sum(1).astype(np.float64)
        nll_NT, correct_NT = outputs["nll"].astype(np.float64), outputs["correct"].astype(np.float64)
        scores = {"loss": Score((nll_NT * fresh_NT).sum(1), count_N), "accuracy": Score((correct_NT * fresh_NT).sum(1), count_N)}
        return Judged({"truth": token_NT, "fresh": fresh_NT, "nll": outputs["nll"]}, scores)

    def aligned(self, judged: Judged, by: Judging) -> Judged:
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
        from . import drawing

        return {"loss_by_position": drawing.loss_by_position(judged.columns["nll"])}
