"""Texts to token numbers and back: what is kept, what is cut, and that the same texts always give the same numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.tasks import tokens
from workloads.tasks.tokens import Kind

KINDS: list[Kind] = ["words", "wordpiece", "characters", "bpe"]
TEXTS = ["The cat sat on the mat.", "the dog sat, too", "Cats and dogs and mats: naïve ones", "unbelievably believable", "ß ﬁ 猫 🙂"]


def learn(kind: Kind, texts: list[str], vocabulary: int = 300, frequency: int = 1) -> str:
    return tokens.learn(kind, iter([texts[:2], texts[2:]]), vocabulary=vocabulary, frequency=frequency)


def known(tokenizer: str) -> dict[str, int]:
    return json.loads(tokenizer)["model"]["vocab"]


def of(tokenizer: str, text: str, length: int = 64) -> list[str]:
    row, count = tokens.numbers(tokenizer, [text], length=length)
    return tokens.names(tokenizer, row[0, : count[0]].tolist())


def test_words_are_lower_case_and_a_text_begins_with_cls() -> None:
    assert of(learn("words", TEXTS), "The DOG sat.") == ["[CLS]", "the", "dog", "sat", "."]


def test_word_pieces_stand_between_cls_and_sep() -> None:
    names = of(learn("wordpiece", TEXTS), "The dog")
    assert (names[0], names[-1]) == ("[CLS]", "[SEP]")
    assert "".join(names[1:-1]).replace("##", "") == "thedog"


@pytest.mark.parametrize(("kind", "expected"), [("words", ["[CLS]"]), ("wordpiece", ["[CLS]", "[SEP]"])])
def test_an_empty_text_is_its_frame_alone(kind: Kind, expected: list[str]) -> None:
    assert of(learn(kind, TEXTS), "") == of(learn(kind, TEXTS), " \n ") == expected


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_an_unknown_word_is_unk(kind: Kind) -> None:
    assert of(learn(kind, TEXTS), "the Ж sat")[:3] == ["[CLS]", "the", "[UNK]"]


def test_a_word_rarer_than_the_frequency_is_unknown() -> None:
    counted = Counter(re.findall(r"\w+|[^\w\s]", " ".join(TEXTS[:3]).lower()))
    tokenizer = learn("words", TEXTS[:3], frequency=2)
    assert set(known(tokenizer)) == {"[PAD]", "[UNK]", "[CLS]"} | {word for word, count in counted.items() if count >= 2}


def test_the_commonest_words_are_kept() -> None:
    tokenizer = learn("words", ["a a a a b b b c c d"], vocabulary=6)
    assert known(tokenizer) == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "a": 3, "b": 4, "c": 5}
    assert tokens.size(tokenizer) == 6


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_padding_is_zero_and_lies_behind_the_length(kind: Kind) -> None:
    tokenizer = learn(kind, TEXTS)
    rows, lengths = tokens.numbers(tokenizer, ["the cat", "", "the cat sat on the mat"], length=10)
    assert (rows.dtype, rows.shape, lengths.dtype) == (np.int32, (3, 10), np.int64)
    for row, length in zip(rows, lengths, strict=True):
        assert row[:length].all()
        assert not row[length:].any()


def test_a_long_text_is_cut_and_keeps_its_frame() -> None:
    assert of(learn("words", TEXTS), "the cat sat on the mat", length=4) == ["[CLS]", "the", "cat", "sat"]
    assert of(learn("wordpiece", TEXTS), "the cat sat on the mat", length=4) == ["[CLS]", "the", "cat", "[SEP]"]


def test_word_pieces_are_the_longest_that_fit_from_the_left() -> None:
    tokenizer = learn("wordpiece", TEXTS * 3, vocabulary=80)
    vocabulary = known(tokenizer)
    for word in ("unbelievably", "cats", "dog", "believ", "table", "sss"):
        pieces, rest = [], word
        while rest:
            prefix = "##" if pieces else ""
            taken = next((rest[:size] for size in range(len(rest), 0, -1) if prefix + rest[:size] in vocabulary), None)
            pieces, rest = ([*pieces, prefix + taken], rest[len(taken) :]) if taken else (["[UNK]"], "")
        assert of(tokenizer, word)[1:-1] == pieces
    assert len(of(tokenizer, "unbelievably")) > 3


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_byte_pairs_give_back_every_text(texts: list[str]) -> None:
    tokenizer = learn("bpe", TEXTS)
    assert tokens.text(tokenizer, tokens.stream(tokenizer, texts)) == "".join(texts)


def test_characters_give_back_what_they_know() -> None:
    tokenizer = learn("characters", TEXTS)
    assert tokens.text(tokenizer, tokens.stream(tokenizer, TEXTS)) == "".join(TEXTS)
    assert tokens.size(tokenizer) == len(set("".join(TEXTS))) + 1  # and the unknown one


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_has_no_frame(kind: Kind) -> None:
    names = tokens.names(learn(kind, TEXTS), tokens.stream(learn(kind, TEXTS), TEXTS[:2]).tolist())
    assert not {"[CLS]", "[SEP]", "[PAD]"} & set(names)
    assert tokens.stream(learn(kind, TEXTS), []).dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_learns_the_same_tokenizer(kind: Kind) -> None:
    texts = [f"{TEXTS[n % 5]} {n % 7} x{n % 11}y" for n in range(60)]
    asked = "import json, sys; from workloads.tasks import tokens; kind, texts = json.loads(sys.argv[1]);"
    asked += "sys.stdout.write(tokens.learn(kind, iter([texts]), vocabulary=70))"
    command = [sys.executable, "-c", asked, json.dumps([kind, texts])]
    learnt = {subprocess.run(command, capture_output=True, check=True).stdout.decode() for _ in range(2)}
    assert learnt == {tokens.learn(kind, iter([texts]), vocabulary=70)}


@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([3, 8, 20, 40]))
def test_a_batch_is_cut_to_a_bucket_that_holds_every_token(lengths: list[int], width: int) -> None:
    length_B = np.minimum(np.array(lengths, np.int64), width)
    rows = np.where(np.arange(width) < length_B[:, None], 7, 0).astype(np.int32)
    batch = tokens.cut({"tokens": rows, "length": length_B, "label": np.arange(len(rows))})
    assert (batch["tokens"] != 0).sum() == length_B.sum()
    assert batch["tokens"].shape[1] in (8, 16, 24, 32, width)
    assert batch["tokens"].shape[1] < length_B.max(initial=1) + 8
    np.testing.assert_array_equal(batch["label"], np.arange(len(rows)))
