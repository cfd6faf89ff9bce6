"""Pretrained weights from a folder: loaded, fine-tuned and registered with their tokenizer; or none, and a vocabulary of the data's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data import preparation
from pipelines.training.worker import work
from tests import runs
from tests.cli import CPU_QUICK, raylway
from workloads.base import DataError
from workloads.bert import BERT, PretrainedEncoding

TEXTS = np.array(["The film is good", "a dull, dull film", "", "good good good and then some more of it"] * 3, dtype=object)
LABELS = np.array(["good", "bad", "bad", "good"] * 3, dtype=object)
RAW = {"text": TEXTS, "label": LABELS}
SHORT = ("train.steps=6", "train.batch=64", "train.checkpoint_every=3", "optim.lr=1e-4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` leaves it: a small BERT with weights of its own, and a tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("weights") / "small-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz,", "the", "film", "is", "good", "dull", "##s"]
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(11)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 24}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(path)
    return path


def started(folder: Path) -> tuple[BERT, PretrainedEncoding, torch.nn.Module]:
    workload = BERT(pretrained=str(folder), length=16)
    encoding = workload.fit(iter([RAW]))
    torch.manual_seed(0)
    network = workload.network(encoding)
    workload.initialize(network)
    return workload, encoding, network.eval()


def test_the_weights_of_a_folder_are_all_taken_but_the_head(folder: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    state = started(folder)[2].state_dict()
    assert len(stored) > 30
    for name, tensor in stored.items():
        torch.testing.assert_close(state[f"transformer.bert.{name}"], tensor, rtol=0, atol=0)
    assert {name for name in state if name.removeprefix("transformer.bert.") not in stored} == {
        "transformer.classifier.weight",
        "transformer.classifier.bias",
    }


def test_logits_are_those_of_transformers_with_its_own_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    workload, encoding, network = started(folder)
    theirs = BertForSequenceClassification.from_pretrained(folder).eval()
    theirs.classifier.load_state_dict(network.transformer.classifier.state_dict())
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS[:4].tolist(), padding=True, truncation=True, max_length=16, return_tensors="pt")
    ours = workload.collate(workload.serving(encoding).inputs(TEXTS[:4].tolist()))
    with torch.no_grad():
        logits = network(*(torch.from_numpy(ours[name]) for name in ("tokens", "length")))
        torch.testing.assert_close(logits, theirs(**batch).logits, rtol=0, atol=1e-5)


def test_the_width_of_the_padding_does_not_change_what_is_said(folder: Path) -> None:
    workload, encoding, network = started(folder)
    encoded = {name: torch.from_numpy(column) for name, column in workload.serving(encoding).inputs(TEXTS[:4].tolist()).items()}
    with torch.no_grad():
        together = network(encoded["tokens"], encoded["length"])
        for row, length in enumerate(encoded["length"].tolist()):
            alone = network(encoded["tokens"][row : row + 1, :length], encoded["length"][row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_without_weights_a_vocabulary_is_learnt_and_is_the_same_each_time() -> None:
    workload = BERT(pretrained=None, layers=1, width=16, heads=2, length=16, frequency=1)
    encoding = workload.fit(iter([RAW]))
    assert encoding == workload.fit(
        iter([{name: column[:5] for name, column in RAW.items()}, {name: column[5:] for name, column in RAW.items()}])
    )
    assert "good" in json.loads(encoding.tokenizer)["model"]["vocab"]
    assert json.loads(encoding.config)["max_position_embeddings"] == 16


def test_a_run_from_a_folder_resumes_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    overrides = (f"model.pretrained={folder}", "model.length=16", "model.dropout=0.1", "train.keep=5", *SHORT)
    whole = runs.job(tmp_path, tmp_path / "whole", *overrides, recipe="bert")
    runs.alone(whole)
    runs.copy_as_of(tmp_path / "whole", tmp_path / "resumed", 3)
    resumed = runs.job(tmp_path, tmp_path / "resumed", *overrides, recipe="bert")
    assert work(resumed, rank=0, world_size=1, device="cpu").resumed_from_step == 3
    assert runs.final_files(tmp_path / "resumed", 6) == runs.final_files(tmp_path / "whole", 6)


def test_a_folder_is_named_by_its_content(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    run = runs.load(tmp_path, f"model.pretrained={copy}", "model.length=16", *SHORT, recipe="bert")
    before = preparation.plan(run).fingerprint
    assert preparation.plan(run).fingerprint == before
    with (copy / "model.safetensors").open("r+b") as weights:
        weights.seek(-4, 2)
        weights.write(b"abcd")
    assert preparation.plan(run).fingerprint != before


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pickled = shutil.copytree(folder, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.pretrained=.*pickled cannot be loaded"):
        started(pickled)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pretrained": "/nowhere/at/all"}, r"model\.pretrained=/nowhere/at/all cannot be loaded .*model\.pretrained=null"),
        ({"pretrained": None, "width": 30, "heads": 4}, r"model\.width=30 cannot be shared by model\.heads=4"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        BERT(**settings).fit(iter([RAW]))


def test_texts_longer_than_the_pretrained_positions_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"model\.length=32 is longer than the 24 positions"):
        BERT(pretrained=str(folder), length=32).fit(iter([RAW]))


ASK = """
import sys, json, mlflow
mlflow.set_tracking_uri(sys.argv[1])
answers = mlflow.pyfunc.load_model(sys.argv[2]).predict([{"text": text} for text in ("return self.name", "a line of prose", "")])
print(json.dumps([answers["label"].tolist(), [name for name in sys.modules if name.split(".")[0] in ("workloads", "pipelines")]]))
"""


@pytest.mark.long
def test_a_fine_tuned_folder_is_registered_with_its_tokenizer_and_needs_neither_folder_nor_repository(folder: Path, place: Path) -> None:
    copy = shutil.copytree(folder, place / "copy")
    settings = (f"model.pretrained={copy}", "model.length=16", f"storage={place / 'runs'}")
    code, result, err = raylway("train", "bert", *SHORT, *settings, *CPU_QUICK, "--json", cwd=place)
    assert code == 0, err
    shutil.rmtree(copy)
    asked = [sys.executable, "-I", "-c", ASK, f"sqlite:///{place}/runs/mlflow.db", result["model"]["uri"]]
    done = subprocess.run(asked, cwd=place, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    labels, ours = json.loads(done.stdout.splitlines()[-1])
    assert set(labels) <= {"code", "prose"}
    assert len(labels) == 3
    assert ours == []
