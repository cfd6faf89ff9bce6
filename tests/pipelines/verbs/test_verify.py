"""What is promised of every training is proven; and a workload that breaks the promise is found out."""

from __future__ import annotations

import shutil

import pytest

from pipelines import config
from pipelines.errors import RecipeError
from pipelines.screen import Screen
from pipelines.verbs.verify import verify
from tests.cli import CPU_QUICK, ROOT, raylway
from tests.trained import QUICK

TIRED = '''
from .tasks.image_classification import ImageClassification


class Tired(ImageClassification):
    """Counts its batches in a place that no checkpoint holds."""

    def network(self, encoding):
        from torch import nn

        from .layers.images import Standardize

        class Counting(nn.Module):
            seen = 0

            def forward(self, x_BCHW):
                self.seen += self.training
                return x_BCHW * (1 + 0.01 * self.seen)

        standardize = Standardize(encoding.mean, encoding.deviation)
        return nn.Sequential(standardize, Counting(), nn.Flatten(), nn.Linear(64, len(encoding.classes)))
'''


def verified(what, storage, *overrides, steps=8):
    return verify(what, config.load("cnn", [f"storage={storage}", *overrides]), steps=steps, screen=Screen(as_json=True))


def test_a_training_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path):
    result = verified("resume", tmp_path, *QUICK, "model.dropout=0.3")
    assert result["verified"]
    assert (result["resumed_from_step"], result["first_difference"]) == (4, None)
    assert result["compared"] >= 8 * 3  # loss, accuracy and learning rate at each step
    assert result["weights_sha256"]["undisturbed"] == result["weights_sha256"]["resumed"]
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"], "nothing else is kept"


def test_a_network_with_a_memory_of_its_own_is_found_out(tmp_path):
    for room in ("workloads", "pipelines", "cluster"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "workloads" / "tired.py").write_text(TIRED)
    (tmp_path / "workloads" / "recipes" / "tired.yaml").write_text("workload: tired\ndata: {source: digits}\ntrain: {epochs: 1}\n")
    code, result, err = raylway("verify", "resume", "tired", *CPU_QUICK, "--json", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 4, err
    assert not result["verified"]
    half = result["resumed_from_step"]
    assert half > 0
    assert result["first_difference"]["step"] == half + 1


def test_of_one_worker_there_is_no_parity(tmp_path):
    with pytest.raises(RecipeError, match=r"write scale\.workers=2"):
        verified("parity", tmp_path)


def test_a_single_step_has_no_half(tmp_path):
    with pytest.raises(RecipeError, match="cannot be stopped half way"):
        verified("resume", tmp_path, *QUICK, "train.epochs=null", "train.steps=1")


def test_of_a_stream_nothing_is_promised(tmp_path):
    with pytest.raises(RecipeError, match="no promised order"):
        verified("resume", tmp_path, "data.mode=stream")
