"""One label for each text, out of a fixed set of classes (softmax)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ..base import Arrays, DataError, Encoding, Rows, Serving
from . import tokens
from .classes import Classification, ClassServing, Labels, class_index, labels_in, labels_of, worst_mistakes
from .tokens import text_column, texts_in

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor, nn

# N rows, B rows of a batch, T tokens of the longest text, K classes


class TextEncoding(Encoding):
    """Class names in index order, and the tokenizer as its own JSON."""

    classes: tuple[str, ...]
    tokenizer: str


class TextServing(ClassServing):
    """Texts in, classes out."""

    def example(self, raw: Arrays) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame({"text": texts_in(raw["text"])})

    def inputs(self, given: Any) -> dict[str, np.ndarray]:
        """A DataFrame with a column `text`, or what makes one (a list of dicts, a dict of lists); or texts alone, in a list or an array."""
        return self.encode({"text": text_column(given)})


class TextClassification(Classification):
    """Raw rows: `text` (N,), strings; `label` (N,), integers or strings.

    Networks are called with tokens int32 (B, T), padded behind each text's end, and length int64 (B,), and answer with logits (B, K).
    A text that is longer than `length` is cut, an unknown word counts as [UNK], an empty text is its [CLS] alone; a missing one is refused.
    """

    task: ClassVar[str] = "text classification"
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    length_column: ClassVar[str | None] = "length"
    encoding_type: ClassVar[type[Encoding]] = TextEncoding
    serving_type: ClassVar[type[Serving]] = TextServing
    requires: ClassVar[tuple[str, ...]] = ("tokenizers",)

    tokens: Literal["words", "wordpiece"] = "words"
    """What a text is cut into: whole words, or pieces of them as in BERT."""
    vocabulary: int = Field(20_000, ge=8)
    """Size of the vocabulary: the commonest tokens."""
    frequency: int = Field(2, gt=0)
    """Occurrences in the training rows that a token needs to be known."""
    length: int = Field(64, ge=3)
    """Longest text, in tokens with its [CLS]; the rest is cut."""

    def check(self, raw: Arrays) -> None:
        labels_in(raw["label"])
        texts_in(raw["text"])

    def fit(self, batches: Iterable[Arrays]) -> TextEncoding:
        labels = Labels()

        def texts() -> Iterator[list[str]]:
            for raw in batches:
                labels.add(raw["label"])
                yield texts_in(raw["text"])

        reading = texts()
        tokenizer = self.learn(reading)
        for _ in reading:  # a tokenizer that is not learnt leaves them unread, but their labels count
            pass
        if not labels.rows:
            raise DataError("there are no training rows")
        return TextEncoding(classes=labels.names(self.classes), tokenizer=tokenizer)

    def learn(self, texts: Iterator[list[str]]) -> str:
        """The tokenizer (its JSON) for batches of training texts."""
        return tokens.learn(self.tokens, texts, vocabulary=self.vocabulary, frequency=self.frequency)

    def encode(self, raw: Arrays, encoding: TextEncoding) -> dict[str, np.ndarray]:
        tokens_NT, length_N = tokens.numbers(encoding.tokenizer, texts_in(raw["text"]), length=self.length)
        encoded = {"tokens": tokens_NT, "length": length_N}
        if "label" in raw:
            encoded["label"] = class_index(raw["label"], encoding.classes)
        return encoded

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return tokens.cut(batch)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["tokens"], batch["length"])

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: TextEncoding) -> dict[str, Figure]:
        from .judged_classes import confusion_matrix

        truth_N, p_NK = labels_of(test), outputs["probabilities"]
        worst = worst_mistakes(truth_N, p_NK, 12)
        framing = tokens.numbers(encoding.tokenizer, [""], length=self.length)[0]  # [CLS] and the like, which are in every text
        texts = [tokens.text(encoding.tokenizer, row_T[~np.isin(row_T, framing)]) for row_T in test.take(worst, ["tokens"])["tokens"]]
        return {
            "confusion_matrix": confusion_matrix(truth_N, p_NK.argmax(1), encoding.classes),
            "worst_mistakes": worst_texts(texts, truth_N[worst], p_NK[worst], encoding.classes),
        }


def worst_texts(texts: Sequence[str], truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Misclassified texts, each with its true class and the predicted one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1 + 0.6 * max(1, len(texts))), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title("The surest mistakes" if texts else "No mistakes", loc="left")
    for row, (text, truth, p_K) in enumerate(zip(texts, truth_N, p_NK, strict=True)):
        predicted = int(p_K.argmax())
        mistake = f"{classes[truth]}, predicted {classes[predicted]} ({p_K[predicted]:.2f})"
        height = 1 - (row + 0.5) / len(texts)
        axes.text(0, height, mistake, fontsize=9, weight="bold", va="center")
        shown = textwrap.shorten(text, 220, placeholder=" …").replace("$", r"\$")
        axes.text(0.27, height, textwrap.fill(shown, 110), fontsize=9, va="center")
    return figure


def attention_map(weights_HTT: np.ndarray, names: Sequence[str]) -> Figure:
    """Attention weights of H heads over one text: a row for each query token, dark where its weight is high."""
    from matplotlib.figure import Figure

    heads, count = len(weights_HTT), len(names)
    columns = min(4, heads)
    rows = -(-heads // columns)
    size = 1.2 + 0.14 * count
    figure = Figure(figsize=(1.2 + size * columns, 1.6 + size * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    shown = [name.replace("$", r"\$") for name in names]
    for axes in grid.ravel():
        axes.axis("off")
    for head, weights_TT in enumerate(weights_HTT):
        axes = grid[head // columns, head % columns]
        axes.axis("on")
        axes.imshow(weights_TT, cmap="Blues", vmin=0)
        axes.set_title(f"head {head + 1}, up to {weights_TT.max():.2f}", fontsize=9)
        axes.set_xticks(range(count), shown if head + columns >= heads else [], rotation=90, fontsize=7)
        axes.set_yticks(range(count), shown if head % columns == 0 else [], fontsize=7)
    figure.suptitle("Attention: a row for each token, dark where it attends")
    return figure
