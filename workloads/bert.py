"""BERT and its kin, by `transformers`: fine-tuned from pretrained weights where there are any, else trained from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from .base import Arrays, DataError
from .tasks import tokens
from .tasks.text_classification import TextClassification, TextEncoding

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from .layers.text import SequenceClassifier


class PretrainedEncoding(TextEncoding):
    """The class names, the tokenizer, and the network's shape as transformers' config (JSON): no download is needed to serve a model."""

    config: str


class BERT(TextClassification):
    """Bidirectional Transformer encoder (Devlin et al., 2019) with a classification head on its first token.

    With `pretrained`, its weights, its tokenizer and its shape are taken, and the settings of shape below do not count; without,
    a WordPiece vocabulary is learnt from the training rows.
    """

    encoding_type: ClassVar[type[PretrainedEncoding]] = PretrainedEncoding
    requires: ClassVar[tuple[str, ...]] = ("tokenizers", "transformers")

    pretrained: str | None = "bert-base-uncased"
    """Name on the Hugging Face hub, or folder, of weights (safetensors) and tokenizer; null: none, train from scratch."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    tokens: Literal["words", "wordpiece"] = "wordpiece"
    """Tokens of a text, without `pretrained`."""
    layers: int = Field(2, gt=0)
    """Transformer blocks, without `pretrained`."""
    heads: int = Field(4, gt=0)
    """Attention heads of a block, without `pretrained`."""
    width: int = Field(128, gt=0)
    """Length of a token's vector, without `pretrained`; the hidden layers have four times as many units."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout: share of values set to zero at each training step; null: as in the pretrained config, 0.1 without one."""

    def learn(self, texts: Iterator[list[str]]) -> str:
        if self.pretrained is None:
            return super().learn(texts)
        from transformers import AutoTokenizer

        with self._loading():
            tokenizer = AutoTokenizer.from_pretrained(self.pretrained, revision=self.revision, use_fast=True)
        return tokenizer.backend_tokenizer.to_str()

    def fit(self, batches: Iterable[Arrays]) -> PretrainedEncoding:
        learnt = super().fit(batches)
        config = self._config(learnt)
        config.num_labels = len(learnt.classes)
        if self.dropout is not None:
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = self.dropout
        longest = getattr(config, "max_position_embeddings", self.length)
        if self.length > longest:
            raise DataError(f"model.length={self.length} is longer than the {longest} positions of model.pretrained={self.pretrained}")
        return PretrainedEncoding(**learnt.model_dump(), config=config.to_json_string(use_diff=False))

    def network(self, encoding: PretrainedEncoding) -> nn.Module:
        """Tokens (B, T) and length (B,) to logits (B, K)."""
        from .layers.text import SequenceClassifier

        return SequenceClassifier(encoding.config)

    def initialize(self, model: nn.Module) -> None:
        if self.pretrained is not None:
            with self._loading():
                cast("SequenceClassifier", model).load_body(self.pretrained, self.revision)

    def task_settings(self) -> dict[str, Any]:
        """The content of `pretrained` counts too: not a folder's name but its files decide how rows are encoded and what is trained."""
        if self.pretrained is None:
            shape: dict[str, Any] = {"layers": self.layers, "heads": self.heads, "width": self.width}
        else:
            shape = {"pretrained": self.pretrained, "revision": self.revision, "files": _content(Path(self.pretrained))}
        return super().task_settings() | shape | {"dropout": self.dropout}

    def _config(self, learnt: TextEncoding) -> PretrainedConfig:
        from transformers import AutoConfig, BertConfig

        if self.pretrained is not None:
            with self._loading():
                return AutoConfig.from_pretrained(self.pretrained, revision=self.revision)
        if self.width % self.heads:
            raise DataError(f"model.width={self.width} cannot be shared by model.heads={self.heads}")
        return BertConfig(
            vocab_size=tokens.size(learnt.tokenizer),
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=self.length,
        )

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            cause = str(error).strip().splitlines()[0]
            hint = "give a folder, or model.pretrained=null to train from scratch"
            raise DataError(f"model.pretrained={self.pretrained} cannot be loaded ({cause}); {hint}") from error


def _content(folder: Path) -> dict[str, str]:
    """sha256 of each file in a folder of weights; nothing for a name on the hub, which its revision fixes."""
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    return {path.name: _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
