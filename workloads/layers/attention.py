"""The Transformer's parts (Vaswani et al., 2017): multi-head self-attention, the block around it, positions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B rows, T tokens, D width, H heads, K width of a head

Activation = Literal["gelu", "gelu_tanh", "relu"]
PositionKind = Literal["sinusoidal", "learned", "none"]


class SelfAttention(nn.Module):
    """softmax(Q K' / sqrt(K)) V for each of `heads` heads, side by side, by torch's fused kernel; `causal` looks only backwards."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """`mask_BT` is False where a token is padding: nothing attends to it."""
        q_BHTK, k_BHTK, v_BHTK = self._heads(x_BTD)
        mask = None if mask_BT is None else mask_BT[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=mask, dropout_p=dropout, is_causal=self.causal)
        return self.output(y_BHTK.transpose(1, 2).flatten(2))

    def weights(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, T) that `forward` uses but does not keep: for pictures."""
        q_BHTK, k_BHTK, _ = self._heads(x_BTD)
        scores_BHTT = q_BHTK @ k_BHTK.transpose(2, 3) / math.sqrt(q_BHTK.shape[3])
        if mask_BT is not None:
            scores_BHTT = scores_BHTT.masked_fill(~mask_BT[:, None, None, :], -math.inf)
        if self.causal:
            length = x_BTD.shape[1]
            ahead = torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).triu(1)
            scores_BHTT = scores_BHTT.masked_fill(ahead, -math.inf)
        return scores_BHTT.softmax(3)

    def _heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # the gradient of chunks is put together once; that of parts picked by an index is padded with zeros and added, three times over
        parts = self.query_key_value(x_BTD).chunk(3, dim=2)
        q_BHTK, k_BHTK, v_BHTK = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return q_BHTK, k_BHTK, v_BHTK


class Block(nn.Module):
    """Attention, then a hidden layer for each token, each added to what came in.

    Normalised before each part (`pre_norm`, as in GPT-2: trains without a long warm-up) or after each sum (as in BERT).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        causal: bool = False,
        pre_norm: bool = True,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = SelfAttention(width, heads, dropout=dropout, causal=causal)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), _activation(activation), nn.Linear(hidden, width))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), mask_BT))
            return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, mask_BT)))
        return self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))

    def attention_weights(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, T) that `forward` uses for the same input."""
        return self.attention.weights(self.attention_norm(x_BTD) if self.pre_norm else x_BTD, mask_BT)


class Positions(nn.Module):
    """Adds to each token's vector one for its place: fixed sines of many wave lengths, learnt vectors, or nothing."""

    table: Tensor

    def __init__(self, kind: PositionKind, length: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.table = nn.Parameter(torch.empty(length, width).normal_(std=0.02))
        elif kind == "sinusoidal":
            self.register_buffer("table", sinusoids(length, width), persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if self.kind == "none" else x_BTD + self.table[: x_BTD.shape[1]]


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): sin and cos of t / 10000^(2i / width), in turns (Vaswani et al., 2017, section 3.5)."""
    place = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(place * rate)
    table[:, 1::2] = torch.cos(place * rate)[:, : width // 2]
    return table


def draw_normal(module: nn.Module, *, layers: int, deviation: float = 0.02) -> None:
    """GPT-2's initial weights: normal, those that end a residual branch smaller by the root of the number of branches."""
    for name, child in module.named_modules():
        if isinstance(child, (nn.Linear, nn.Embedding)):
            ends_branch = name.endswith(("attention.output", "feed_forward.2"))
            nn.init.normal_(child.weight, std=deviation / math.sqrt(2 * layers) if ends_branch else deviation)
            if isinstance(child, nn.Linear) and child.bias is not None:
                nn.init.zeros_(child.bias)


def _activation(name: Activation) -> nn.Module:
    return {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "relu": nn.ReLU()}[name]
