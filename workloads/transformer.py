"""A Transformer's encoder, from scratch: each token attends to every other one of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, cast

import numpy as np
from pydantic import Field, model_validator

from .base import Arrays, Rows
from .tasks import tokens
from .tasks.classes import labels_of
from .tasks.text_classification import TextClassification, TextEncoding

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from .layers.text import EncoderClassifier

_FEWEST_SHOWN, _MOST_SHOWN = 10, 24  # tokens of the text whose attention is drawn


class Transformer(TextClassification):
    """Transformer encoder (Vaswani et al., 2017) with a classifier's head. With norm=post, positions=learned and pool=first it is BERT."""

    width: int = Field(64, gt=0)
    """Width of a token's vector."""
    heads: int = Field(4, gt=0)
    """Attention heads of a layer; they divide the width."""
    hidden: int = Field(128, gt=0)
    """Units of the feed-forward part."""
    layers: int = Field(2, gt=0)
    """Layers, each of attention and feed-forward."""
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    """Position encoding: fixed sines, learnt vectors, or none, which makes a text a bag of words."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each part (trains without a long warm-up), or after each sum (as in the paper and in BERT)."""
    pool: Literal["first", "mean"] = "mean"
    """Input of the classifier: the mean over a text's tokens, or the first token's vector through a dense tanh layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout: share of attention weights and of each part's outputs set to zero at each training step."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Word dropout: share of tokens whose whole vector is set to zero at each training step."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width} cannot be shared by model.heads={self.heads}; make it a multiple")
        return self

    def network(self, encoding: TextEncoding) -> nn.Module:
        """Tokens int32 (B, T) and their length int64 (B,) to logits (B, K)."""
        from .layers.text import EncoderClassifier

        return EncoderClassifier(
            tokens.size(encoding.tokenizer),
            len(encoding.classes),
            length=self.length,
            width=self.width,
            heads=self.heads,
            hidden=self.hidden,
            layers=self.layers,
            positions=self.positions,
            pre_norm=self.norm == "pre",
            pool=self.pool,
            dropout=self.dropout,
            word_dropout=self.word_dropout,
        )

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: TextEncoding) -> dict[str, Figure]:
        """Those of the task, and where the last layer's heads look in a text of a readable length that the network is surest of."""
        import torch

        from .tasks.drawing import attention_map

        length_N = test.take(np.arange(len(test)), ["length"])["length"]
        sure_N = outputs["probabilities"][np.arange(len(test)), labels_of(test)]
        readable_N = (length_N >= _FEWEST_SHOWN) & (length_N <= _MOST_SHOWN)
        row = int(np.argmax(sure_N + readable_N))
        shown = min(int(length_N[row]), _MOST_SHOWN)
        tokens_1T = test.take(np.array([row]), ["tokens"])["tokens"][:, :shown]
        encoder = cast("EncoderClassifier", model)
        weights_HTT = encoder.attention_weights(torch.from_numpy(tokens_1T), torch.tensor([shown]))[0, -1].numpy()
        attention = attention_map(weights_HTT, tokens.names(encoding.tokenizer, tokens_1T[0].tolist()))
        return super().figures(model, outputs, test, encoding) | {"attention": attention}
