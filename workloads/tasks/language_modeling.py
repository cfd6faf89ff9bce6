"""The next token of a text, after those before it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_POSITIONS = 25
_COUNTED_ROWS, _WRITTEN_ROWS = 4096, 16
_PICTURED_TOKENS, _LINE_CHARACTERS, _DARKEST, _WHITE_BELOW = 512, 85, 1e-3, 0.03


class LanguageEncoding(Encoding):
    """The tokenizer as its own JSON."""

    tokenizer: str


class LanguageServing(Serving):
    """Prompts in, their continuations out."""

    def sample(self, model: nn.Module) -> str:
        """The prompt of the settings and its continuation."""
        import torch

        begun_BP, length_B = self._begin([self.workload.prompt])
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        with torch.no_grad():
            written_BN = self._write(model, torch.from_numpy(begun_BP).to(device), torch.from_numpy(length_B).to(device))
        model.train(training)
        return self.workload.prompt + tokens.text(self.encoding.tokenizer, written_BN[0].tolist())

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

        parts = zip(batch["token"].split(_WRITTEN_ROWS), batch["length"].split(_WRITTEN_ROWS), strict=True)
        return {"token": torch.cat([self._write(model, *part) for part in parts])}

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

    def _write(self, model: nn.Module, token_BP: Tensor, length_B: Tensor) -> Tensor:
        from ..layers.text import write

        return write(
            model,
            token_BP,
            length_B,
            tokens=self.workload.sample_tokens,
            window=self.workload.window,
            temperature=self.workload.temperature,
            top_k=self.workload.top_k,
        )


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
    """What the text is cut into: characters, or pairs of bytes merged again and again as in GPT-2."""
    vocabulary: int = Field(512, gt=1)
    """Size of the vocabulary: the commonest tokens; byte pairs need 256 at least."""
    window: int = Field(64, gt=0)
    """Tokens that a prediction looks back on, at most."""
    stride: int | None = Field(None, gt=0)
    """Tokens between the beginnings of two training windows; default: the window, so that an epoch holds each token once."""
    prompt: str = Field("\n", min_length=1)
    """Text that samples begin with, and continuations of an empty prompt."""
    sample_tokens: int = Field(200, gt=0)
    """Tokens of a sample, and of a registered model's continuation."""
    temperature: float = Field(0.8, ge=0)
    """Sampling temperature: 1 draws by the network's probabilities, less keeps to likely tokens, 0 always takes the likeliest."""
    top_k: int | None = Field(None, gt=0)
    """Only so many of the likeliest tokens are drawn from; default: all."""

    @model_validator(mode="after")
    def _room_for_every_byte(self) -> LanguageModeling:
        if self.tokens == "bpe" and self.vocabulary < _BYTES:
            raise ValueError(f"model.vocabulary={self.vocabulary} is too small for byte pairs, which begin with {_BYTES} bytes")
        return self

    def check(self, raw: Arrays) -> None:
        texts_in(raw["text"])

    def fit(self, batches: Iterable[Arrays]) -> LanguageEncoding:
        rows = 0

        def texts() -> Iterator[list[str]]:
            nonlocal rows
            for raw in batches:
                rows += len(raw["text"])
                yield texts_in(raw["text"])

        tokenizer = tokens.learn(self.tokens, texts(), vocabulary=self.vocabulary)
        if not rows:
            raise DataError("there are no training rows")
        return LanguageEncoding(tokenizer=tokenizer)

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
        nll_BT = outputs["nll"]
        shown = test.take(np.arange(min(len(test), -(-_PICTURED_TOKENS // self.window))))
        token_N, nll_N = shown["token"][:, 1:][shown["fresh"]], nll_BT[: len(shown["fresh"])][shown["fresh"]]
        pieces = [tokens.text(encoding.tokenizer, [token]) for token in token_N[:_PICTURED_TOKENS].tolist()]
        return {"loss_by_position": loss_by_position(nll_BT), "passage": _passage(pieces, np.exp(-nll_N[:_PICTURED_TOKENS]))}

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


def _passage(pieces: Sequence[str], p_N: np.ndarray) -> Figure:
    """A text, each character coloured by the predicted probability of its token."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    cells, row, column = [], 0, 0
    for piece, p in zip(pieces, p_N.tolist(), strict=True):
        for character in piece:
            shown = "↵" if character == "\n" else character if character.isprintable() else "·"
            cells.append((row, column, shown, p))
            row, column = (row + 1, 0) if character == "\n" or column + 1 == _LINE_CHARACTERS else (row, column + 1)
    p_RC = np.full((cells[-1][0] + 1, 1 + max(column for _, column, _, _ in cells)), np.nan)
    for row, column, _, p in cells:
        p_RC[row, column] = p
    figure = Figure(figsize=(2 + 0.12 * p_RC.shape[1], 1.2 + 0.25 * p_RC.shape[0]), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(p_RC, cmap="Oranges_r", norm=LogNorm(_DARKEST, 1, clip=True), aspect="auto")
    for row, column, character, p in cells:
        colour = "white" if p < _WHITE_BELOW else "black"
        axes.text(column, row, character, family="monospace", fontsize=9, color=colour, ha="center", va="center", parse_math=False)
    axes.axis("off")
    axes.set_title("The first test tokens, coloured by the predicted probability of each", loc="left")
    figure.colorbar(picture, ax=axes, fraction=0.02, pad=0.01, format="{x:g}")
    return figure


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
        return {"loss_by_position": loss_by_position(judged.columns["nll"])}


def loss_by_position(nll_BT: np.ndarray) -> Figure:
    """Loss by position in the window, which shows if more context helps: with its standard error, later positions averaged in groups."""
    from matplotlib.figure import Figure

    window = nll_BT.shape[1]
    edges = np.unique(np.geomspace(1, window + 1, _POSITIONS).round().astype(int))
    groups = [nll_BT[:, first - 1 : after - 1] for first, after in itertools.pairwise(edges.tolist())]
    context, mean = (edges[:-1] + edges[1:] - 1) / 2, np.array([group.mean() for group in groups])
    error = np.array([group.std() / np.sqrt(group.size) for group in groups])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(context, mean - error, mean + error, alpha=0.25, linewidth=0, label="standard error")
    axes.plot(context, mean, marker=".", label="test loss")
    axes.axhline(nll_BT.mean(), color="grey", linestyle=":", label=f"mean {nll_BT.mean():.3f}")
    axes.set(title="Does more context help?", xlabel="tokens that the prediction looks back on", ylabel="nats a token", xscale="log")
    powers = 2 ** np.arange(window.bit_length())
    axes.set_xticks(powers, [str(power) for power in powers])
    axes.minorticks_off()
    axes.legend()
    return figure
