"""Networks of Hugging Face's `transformers`, behind the call that the text tasks make."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from ..base import DataError

# B rows, T tokens, K classes


class SequenceClassifier(nn.Module):
    """The architecture that `config` (JSON, as transformers writes it) describes, with its classification head; weights are drawn."""

    def __init__(self, config: str) -> None:
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
        weights = AutoModel.from_pretrained(pretrained, revision=revision, use_safetensors=True).state_dict()
        body = self.transformer.base_model
        fitting = {name: tensor for name, tensor in weights.items() if name in body.state_dict()}
        if missing := sorted(set(body.state_dict()) - set(fitting)):
            raise DataError(f"model.pretrained={pretrained}: its weights lack {missing[0]} and {len(missing) - 1} more")
        body.load_state_dict(fitting)
