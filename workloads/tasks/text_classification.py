"""One label for each text, out of a fixed set of classes (softmax)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ..base import Arrays, Encoding, Rows, Serving
from . import tokens
from .classes import Classification, ClassServing, Labels, encoded_label, labels_of, worst_mistakes
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
    """Tokens of a text: whole words, or word pieces as in BERT."""
    vocabulary: int = Field(20_000, ge=8)
    """Size of the vocabulary, in tokens: the most frequent ones."""
    frequency: int = Field(2, gt=0)
    """Fewest occurrences in the training rows for a token to enter the vocabulary."""
    length: int = Field(64, ge=3)
    """Largest length of a text, in tokens with its [CLS]; longer texts are cut."""

    def check(self, raw: Arrays) -> None:
        super().check(raw)
        texts_in(raw["text"])

    def fit(self, batches: Iterable[Arrays]) -> TextEncoding:
        labels = Labels()
        texts = (texts_in(raw["text"]) for raw in labels.of(batches))
        tokenizer = self.learn(texts)
        for _ in texts:  # a tokenizer that is not learnt leaves them unread, but their labels count
            pass
        return TextEncoding(classes=labels.names(self.classes), tokenizer=tokenizer)

    def learn(self, texts: Iterator[list[str]]) -> str:
        """The tokenizer (its JSON) for batches of training texts."""
        return tokens.learn(self.tokens, texts, vocabulary=self.vocabulary, frequency=self.frequency)

    def encode(self, raw: Arrays, encoding: TextEncoding) -> dict[str, np.ndarray]:
        tokens_NT, length_N = tokens.numbers(encoding.tokenizer, texts_in(raw["text"]), length=self.length)
        return {"tokens": tokens_NT, "length": length_N} | encoded_label(raw, encoding.classes)

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return tokens.cut(batch)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["tokens"], batch["length"])

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: TextEncoding) -> dict[str, Figure]:
        from . import drawing

        truth_N, p_NK = labels_of(test), outputs["probabilities"]
        worst = worst_mistakes(truth_N, p_NK, 12)
        framing = tokens.numbers(encoding.tokenizer, [""], length=self.length)[0]  # [CLS] and the like, which are in every text
        texts = [tokens.text(encoding.tokenizer, row_T[~np.isin(row_T, framing)]) for row_T in test.take(worst, ["tokens"])["tokens"]]
        return {
            "confusion_matrix": drawing.confusion_matrix(truth_N, p_NK.argmax(1), encoding.classes),
            "worst_mistakes": drawing.worst_texts(texts, truth_N[worst], p_NK[worst], encoding.classes),
        }
