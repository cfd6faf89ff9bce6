"""GPT-2's decoder (Radford et al., 2019), and the text that a causal network writes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Activation, Block, Positions, draw_normal

# B rows, T tokens, D width, V vocabulary, W window


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
