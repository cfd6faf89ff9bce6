"""Networks of texts: classifiers from scratch, those of `transformers`, GPT-2's decoder (Radford et al., 2019), and what it writes.

Classifiers take tokens int32 (B, T), padded behind each text's end, and their length int64 (B,), and give logits (B, K). However wide the
padding is, the logits are the same: it is read by nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import DataError
from .attention import Activation, Block, PositionKind, Positions, draw_normal
from .recurrent import Cell, Recurrent

# B rows, T tokens, D width, H heads, L layers, K classes, V vocabulary, W window

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
        """Attention weights of each query token (last axis but one) over the others (last axis), by layer and head: (B, L, H, T, T)."""
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


class Decoder(nn.Module):
    """Token numbers (B, T), at most `window` of each row, to logits (B, T, V) of the token after each: none looks ahead.

    The embedding is the head as well (Press & Wolf, 2017): logits are products with the tokens' own vectors.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        window: int,
        layers: int,
        heads: int,
        width: int,
        activation: Activation = "gelu_tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = Positions("learned", window, width)
        self.dropout = nn.Dropout(dropout)
        blocks = [Block(width, heads, 4 * width, dropout=dropout, causal=True, activation=activation) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        draw_normal(self, layers=layers)

    def forward(self, token_BT: Tensor, place_B: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); with `place_B` those after one token of each row alone, (B, V), which is all that writing needs."""
        x_BTD = self.dropout(self.positions(self.embedding(token_BT)))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        if place_B is not None:
            x_BTD = x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), place_B]
        return F.linear(self.norm(x_BTD), self.embedding.weight)


def write(
    model: nn.Module, token_BT: Tensor, length_B: Tensor, *, tokens: int, window: int, temperature: float, top_k: int | None, seed: int = 0
) -> Tensor:
    """The `tokens` tokens (B, tokens) with which a causal network goes on from each row's first `length_B` tokens (1 to `window`).

    A temperature of 0 takes the likeliest token, any other draws one, out of the `top_k` likeliest if that is stated. All rows are drawn
    for by the same random numbers, so what is written depends on its own beginning only, and is the same again.
    """
    rows = torch.arange(len(token_BT), device=token_BT.device)
    context_BW = F.pad(token_BT[:, :window].long(), (0, max(0, window - token_BT.shape[1])))
    # what stands behind a row's end changes nothing before it, because no token looks ahead
    longest = int(length_B.max()) if len(length_B) else 1
    written_BN = torch.empty(len(token_BT), tokens, dtype=torch.int64, device=token_BT.device)
    chances = torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    for number, chance in enumerate(chances):
        logits_BV = model(context_BW[:, : min(longest + number, window)], length_B - 1)
        written_BN[:, number] = _choose(logits_BV, chance, temperature, top_k)
        context_BW = torch.where((length_B == window)[:, None], context_BW.roll(-1, 1), context_BW)
        length_B = (length_B + 1).clamp(max=window)
        context_BW[rows, length_B - 1] = written_BN[:, number]
    return written_BN


def _choose(logits_BV: Tensor, chance: float, temperature: float, top_k: int | None) -> Tensor:
    """The token (B,) at which the summed probabilities pass `chance`, a number from [0, 1)."""
    if temperature == 0:
        return logits_BV.argmax(1)
    scores_BV = logits_BV.double() / temperature
    if top_k is not None and top_k < scores_BV.shape[1]:
        scores_BV = scores_BV.masked_fill(scores_BV < scores_BV.topk(top_k).values[:, -1:], -torch.inf)
    reached_BV = scores_BV.softmax(1).cumsum(1)
    return torch.searchsorted(reached_BV, chance * reached_BV[:, -1:], right=True)[:, 0]


class SequenceClassifier(nn.Module):
    """The architecture that `config` (JSON, as transformers writes it) describes, with its classification head; weights are drawn."""

    def __init__(self, config: str) -> None:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        super().__init__()
        self.transformer = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**json.loads(config)))

    def forward(self, tokens_BT: Tensor, length_B: Tensor) -> Tensor:
        """Logits (B, K); tokens at or behind a row's length are padding."""
        mask_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < length_B[:, None]
        return self.transformer(input_ids=tokens_BT, attention_mask=mask_BT.long()).logits

    def load_body(self, pretrained: str, revision: str) -> None:
        """Put pretrained weights into all but the head. Only safetensors are read: a pickle could run anything.

        Raises DataError if the weights are not those of this architecture.
        """
        from transformers import AutoModel

        weights = AutoModel.from_pretrained(pretrained, revision=revision, use_safetensors=True).state_dict()
        body = self.transformer.base_model
        fitting = {name: tensor for name, tensor in weights.items() if name in body.state_dict()}
        if missing := sorted(set(body.state_dict()) - set(fitting)):
            raise DataError(f"model.pretrained={pretrained}: its weights lack {missing[0]} and {len(missing) - 1} more")
        body.load_state_dict(fitting)
