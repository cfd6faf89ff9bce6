"""Texts to token numbers and back, by Hugging Face's `tokenizers`. A tokenizer travels as its own JSON inside the encoding.

Learnt from the training rows: whole words, word pieces (Schuster & Nakajima, 2012, as in BERT), characters, or byte pairs (Sennrich et al.,
2016, as in GPT-2). A tokenizer that came with pretrained weights is used in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..base import DataError, choose_columns
from .tables import column_of, data_frame

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# N texts, T tokens of the longest

Kind = Literal["words", "wordpiece", "characters", "bpe"]
PAD, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


def learn(kind: Kind, texts: Iterable[Sequence[str]], *, vocabulary: int, frequency: int = 1) -> str:
    """A tokenizer (its JSON) of at most `vocabulary` tokens, learnt from batches of texts; what is rarer than `frequency` is unknown.

    Words and word pieces are lower-case and begin each text with [CLS] (word pieces end it with [SEP]), so no text is empty.
    """
    learnt = {"words": _words, "wordpiece": _word_pieces, "characters": _characters, "bpe": _byte_pairs}[kind]
    return learnt(texts, vocabulary, frequency).to_str()


def numbers(tokenizer: str, texts: Sequence[str], *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(token numbers int32 (N, length), zero behind a text's end; how many are its own, int64 (N,)). Longer texts are cut."""
    encodings = _load(tokenizer, length).encode_batch(list(texts))
    tokens_NT, length_N = np.zeros((len(texts), length), np.int32), np.zeros(len(texts), np.int64)
    for row, encoding in enumerate(encodings):
        tokens_NT[row, : len(encoding.ids)] = encoding.ids
        length_N[row] = len(encoding.ids)
    return tokens_NT, length_N


def stream(tokenizer: str, texts: Sequence[str]) -> np.ndarray:
    """The token numbers of texts that follow one another, int32, in one row."""
    encodings = _load(tokenizer).encode_batch(list(texts), add_special_tokens=False)
    return np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings]) if encodings else np.empty(0, np.int32)


def text(tokenizer: str, tokens: Sequence[int]) -> str:
    """The text of token numbers."""
    return _load(tokenizer).decode(list(tokens), skip_special_tokens=False)


def names(tokenizer: str, tokens: Sequence[int]) -> list[str]:
    """Each token as it is written in the vocabulary."""
    known = _load(tokenizer)
    return [known.id_to_token(token) or UNKNOWN for token in tokens]


def size(tokenizer: str) -> int:
    """Size of the vocabulary."""
    return _load(tokenizer).get_vocab_size(with_added_tokens=True)


def cut(batch: dict[str, np.ndarray], *, column: str = "tokens") -> dict[str, np.ndarray]:
    """A batch whose padded `column` (N, T) is cut to the bucket of its longest row (`length`): few widths, little padding."""
    longest, width = int(batch["length"].max(initial=1)), batch[column].shape[1]
    bucket = next((bucket for bucket in _BUCKETS if bucket >= longest), width)
    return batch | {column: batch[column][:, : min(bucket, width)]}


def _words(texts: Iterable[Sequence[str]], vocabulary: int, frequency: int) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [PAD, UNKNOWN, BEGIN]
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, min_frequency=frequency, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _with_special_tokens(tokenizer, f"{BEGIN} $A", [BEGIN])


def _word_pieces(texts: Iterable[Sequence[str]], vocabulary: int, frequency: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def empty(known: dict[str, int] | None) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(known, unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    # The trainer numbers the pieces of one character in the order of a randomly seeded hash table, and breaks ties by number: each
    # process would learn another vocabulary (tokenizers 0.23). Given those pieces beforehand, in order, it learns the same one always.
    special = [PAD, UNKNOWN, BEGIN, END]
    learner, texts = empty(None), [list(batch) for batch in texts]
    characters = sorted({character for batch in texts for text in batch for character in learner.normalizer.normalize_str(text)})
    pieces = [f"##{character}" for character in characters if not character.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, min_frequency=frequency, special_tokens=[*special, *pieces], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = empty(learner.get_vocab())
    tokenizer.add_special_tokens(special)
    return _with_special_tokens(tokenizer, f"{BEGIN} $A {END}", [BEGIN, END])


def _characters(texts: Iterable[Sequence[str]], vocabulary: int, frequency: int) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, min_frequency=frequency, special_tokens=[UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_pairs(texts: Iterable[Sequence[str]], vocabulary: int, frequency: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=frequency, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _with_special_tokens(tokenizer: Tokenizer, template: str, ends: Sequence[str]) -> Tokenizer:
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[(end, tokenizer.token_to_id(end)) for end in ends])
    return tokenizer


@functools.lru_cache(maxsize=8)
def _load(tokenizer: str, length: int | None = None) -> Tokenizer:
    """The tokenizer of a JSON; with `length` it cuts longer texts and pads none, whatever the JSON says."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_str(tokenizer)
    if length is not None:
        loaded.no_padding()
        loaded.enable_truncation(length)
    return loaded


def texts_in(column: np.ndarray, name: str = "text") -> list[str]:
    """The texts of column `name`. Raises DataError where one is missing, or is no text."""
    texts = column.tolist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            missing = text is None or (isinstance(text, float) and np.isnan(text))
            raise DataError(
                f"column {name}: {'is missing' if missing else f'{text!r} is not a text'}; give a string, even an empty one", row
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"column {name}: holds half a character, {text[error.start]!r}, at place {error.start}", row) from None
    return texts


def text_column(given: Any, name: str = "text") -> np.ndarray:
    """Column `name` of what a registered model was given: objects (N,), None where a text is missing.

    A DataFrame, or what makes one (a list of dicts, a dict of lists); or texts alone, in a list or an array. Raises DataError.
    """
    table = data_frame(given, f"a table with a column {name}, or a list of texts,")
    if isinstance(given, Mapping) or hasattr(given, "columns") or list(table.columns) != ["0"]:
        choose_columns((name,), list(table.columns), renamed="")
    else:
        table.columns = [name]
    return column_of(table, name)
