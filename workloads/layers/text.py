"""Networks that classify texts: tokens int32 (B, T), padded behind each text's end, and their length int64 (B,), to logits (B, K).

However wide the padding is, the logits are the same: it is read by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from .attention import Block, PositionKind, Positions, draw_normal
from .recurrent import Cell, Recurrent

# B rows, T tokens, D width, H heads, L layers, K classes

Pool = Literal["max", "mean", "first"]


class RecurrentClassifier(nn.Module):
    """Embedding, recurrent layers in one direction or both, the outputs pooled over a text's tokens, a linear head."""

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        embedding: int,
        cell: Cell,
        width: int,
        layers: int,
        bidirectional: bool,
        pool: Pool,
        dropout: float,
        word_dropout: float,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.embedding = nn.Embedding(vocabulary, embedding)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)  # as in Merity et al. (2018): torch's own, ten times larger, hardly learn
        self.word_dropout = nn.Dropout1d(word_dropout)  # of (B, T, D) it silences whole vectors: tokens
        self.dropout = nn.Dropout(dropout)
        self.recurrent = Recurrent(cell, embedding, width, layers=layers, bidirectional=bidirectional, dropout=dropout)
        self.head = nn.Linear(self.recurrent.outputs, classes)

    def forward(self, tokens_BT: Tensor, length_B: Tensor) -> Tensor:
        x_BTD, _ = self.recurrent(self.dropout(self.word_dropout(self.embedding(tokens_BT))), length_B)
        return self.head(pooled(self.dropout(x_BTD), valid(length_B, x_BTD.shape[1]), self.pool))


class EncoderClassifier(nn.Module):
    """Embedding and positions, `layers` blocks of self-attention, and a head.

    With `pre_norm` off, learned positions and the pool `first` it is BERT (Devlin et al., 2019) for texts that are not pairs: [CLS]'s
    vector through a dense tanh layer, then the linear head. Other pools go to the head as they are.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        length: int,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        positions: PositionKind,
        pre_norm: bool,
        pool: Pool,
        dropout: float,
        word_dropout: float,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.embedding = nn.Embedding(vocabulary, width)
        self.word_dropout = nn.Dropout1d(word_dropout)  # of (B, T, D) it silences whole vectors: tokens
        # sines are as large as one, weights are drawn much smaller: vectors are enlarged before they meet (Vaswani et al., section 3.4)
        self.scale = math.sqrt(width) if positions == "sinusoidal" else 1.0
        self.positions = Positions(positions, length, width)
        # after every block there is a sum; normalised before each part, the last sum is not yet; after each, the first one
        self.first_norm = nn.Identity() if pre_norm else nn.LayerNorm(width)
        self.last_norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout=dropout, pre_norm=pre_norm) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if pool == "first" else nn.Identity()
        self.head = nn.Linear(width, classes)
        draw_normal(self, layers=layers)

    def forward(self, tokens_BT: Tensor, length_B: Tensor) -> Tensor:
        mask_BT = valid(length_B, tokens_BT.shape[1])
        x_BTD = self._embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_BT)
        x_BD = pooled(self.last_norm(x_BTD), mask_BT, self.pool)
        return self.head(self.dropout(self.pooler(x_BD)))

    def attention_weights(self, tokens_BT: Tensor, length_B: Tensor) -> Tensor:
        """How much each token (third axis but one) heeds each other one (last axis), in each layer and head: (B, L, H, T, T)."""
        mask_BT = valid(length_B, tokens_BT.shape[1])
        x_BTD, weights = self._embed(tokens_BT), []
        for block in cast("Iterable[Block]", self.blocks):
            weights.append(block.attention_weights(x_BTD, mask_BT))
            x_BTD = block(x_BTD, mask_BT)
        return torch.stack(weights, 1)

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.word_dropout(self.embedding(tokens_BT)) * self.scale
        return self.dropout(self.first_norm(self.positions(x_BTD)))


def valid(length_B: Tensor, width: int) -> Tensor:
    """bool (B, T): True where there is a token, False where there is padding."""
    return torch.arange(width, device=length_B.device) < length_B[:, None]


def pooled(x_BTD: Tensor, mask_BT: Tensor, pool: Pool) -> Tensor:
    """(B, D): the first token's vector, or the mean or the largest of each number over a text's tokens."""
    if pool == "first":
        return x_BTD[:, 0]
    if pool == "max":
        return x_BTD.masked_fill(~mask_BT[:, :, None], -torch.inf).amax(1)
    return (x_BTD * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True)
