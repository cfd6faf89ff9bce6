"""A recurrent network that reads a text word by word, from both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .tasks import tokens
from .tasks.text_classification import TextClassification, TextEncoding

if TYPE_CHECKING:
    from torch import nn


class RecurrentText(TextClassification):
    """Recurrent text classifier: LSTM (Hochreiter & Schmidhuber, 1997), GRU (Cho et al., 2014) or plain RNN over learnt word vectors."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    """Recurrent unit: lstm, gru, or rnn (tanh)."""
    embedding: int = Field(64, gt=0)
    """Width of a token's vector."""
    width: int = Field(64, gt=0)
    """Units of a layer, in each direction."""
    layers: int = Field(1, gt=0)
    """Recurrent layers."""
    bidirectional: bool = True
    """Read each text from its end as well."""
    pool: Literal["max", "mean"] = "max"
    """Pooling of the outputs over a text's tokens: the maximum (Conneau et al., 2017) or the mean."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout: share of the inputs of each layer and of the head set to zero at each training step."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Word dropout: share of tokens whose whole vector is set to zero at each training step."""

    def network(self, encoding: TextEncoding) -> nn.Module:
        """Tokens int32 (B, T) and their length int64 (B,) to logits (B, K)."""
        from .layers.text import RecurrentClassifier

        return RecurrentClassifier(
            tokens.size(encoding.tokenizer),
            len(encoding.classes),
            embedding=self.embedding,
            cell=self.cell,
            width=self.width,
            layers=self.layers,
            bidirectional=self.bidirectional,
            pool=self.pool,
            dropout=self.dropout,
            word_dropout=self.word_dropout,
        )
