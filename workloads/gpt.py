"""GPT: a causal Transformer, trained to predict the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from .tasks import tokens
from .tasks.language_modeling import LanguageEncoding, LanguageModeling

if TYPE_CHECKING:
    from torch import nn


class GPT(LanguageModeling):
    """Language model in the shape of GPT-2 (Radford et al., 2019): pre-norm causal blocks, learnt positions, the embedding as the head."""

    layers: int = Field(4, gt=0)
    """Blocks of attention and feed-forward."""
    heads: int = Field(4, gt=0)
    """Attention heads of each block."""
    width: int = Field(128, gt=0)
    """Width of a token's vector; a multiple of the heads. The feed-forward part is four times as wide."""
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    """Activation of the feed-forward part: gelu_tanh is GPT-2's approximation of gelu, which takes longer than the exact one on a CPU."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout: share of embeddings, attention weights and branch outputs set to zero at each training step."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> GPT:
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width} is no multiple of model.heads={self.heads}")
        return self

    def network(self, encoding: LanguageEncoding) -> nn.Module:
        """Token numbers (B, T) to logits (B, T, V) of the next one."""
        from .layers.text import Decoder

        return Decoder(
            tokens.size(encoding.tokenizer),
            window=self.window,
            layers=self.layers,
            heads=self.heads,
            width=self.width,
            activation=self.activation,
            dropout=self.dropout,
        )
