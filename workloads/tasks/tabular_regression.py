"""One number for each row of a table of numbers, by least squares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ..base import Arrays, DataError, Encoding, Headline, Mean, Rows, Serving
from ..judging import ErrorJudging, Judged, metrics
from .tables import FeatureEncoding, Moments, TableServing, Tabular, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

# N rows, B rows of a batch; z is a target less the training mean, in training deviations
_LEAST_SPREAD = 1e-6  # variance of z below which a batch has no R²: all its targets are the same but for rounding


class RegressionEncoding(FeatureEncoding):
    """Mean and deviation of the target over the training rows, beside the features."""

    target_mean: float
    target_deviation: float


class RegressionServing(TableServing):
    """Tables of numbers in, the target in its own unit out."""

    def decode(self, outputs: Arrays) -> dict[str, list]:
        z_B = outputs["predicted"].astype(np.float64)
        return {"target": (z_B * self.encoding.target_deviation + self.encoding.target_mean).tolist()}


class TabularRegression(Tabular):
    """Raw rows: `target` (N,), numbers, none missing; each feature (N,), numbers. A missing feature counts as the training mean.

    Networks answer with z (B, 1), and the loss is their mean squared error; all other metrics are in the target's own unit.
    """

    task: ClassVar[str] = "tabular regression"
    columns: ClassVar[tuple[str, ...]] = ("target",)
    target_column: ClassVar[str | None] = "target"
    headline: ClassVar[Headline] = Headline("rmse", "min")
    better: ClassVar[Mapping[str, Literal["max", "min"]]] = {"rmse": "min", "mse": "min", "mae": "min", "r2": "max", "loss": "min"}
    encoding_type: ClassVar[type[Encoding]] = RegressionEncoding
    serving_type: ClassVar[type[Serving]] = RegressionServing

    def check(self, raw: Arrays) -> None:
        numbers("target", raw["target"], complete=True)
        super().check(raw)

    def fit(self, batches: Iterable[Arrays]) -> RegressionEncoding:
        moments = Moments.none()

        def seen() -> Iterator[Arrays]:
            nonlocal moments
            for raw in batches:
                moments = moments.with_rows(numbers("target", raw["target"], complete=True)[:, None])
                yield raw

        learnt = self.learn_features(seen())
        mean, deviation = float(moments.mean_F[0]), float(moments.deviation_F()[0])
        if not deviation:
            raise DataError(f"column target: is {mean:g} in every training row, so there is nothing to predict")
        return RegressionEncoding(**learnt.model_dump(), target_mean=mean, target_deviation=deviation)

    def encode(self, raw: Arrays, encoding: RegressionEncoding) -> dict[str, np.ndarray]:
        """`features` float64 (N, F); `target` float64 (N,), standardised by the training rows."""
        encoded = {"features": self.encode_features(raw, encoding)}
        if "target" in raw:
            encoded["target"] = (numbers("target", raw["target"], complete=True) - encoding.target_mean) / encoding.target_deviation
        return encoded

    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        z_B = batch["target"].float()
        error_B, rows = model(batch["features"]).squeeze(1).float() - z_B, len(z_B)
        sums = {"loss": error_B.square(), "absolute": error_B.abs(), "target": z_B, "target_squared": z_B.square()}
        return {name: Mean(each_B.sum(), rows) for name, each_B in sums.items()}

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"predicted": model(batch["features"]).squeeze(1).float()}

    def baselines(self, train: Rows, test: Rows, encoding: RegressionEncoding) -> dict[str, dict[str, float]]:
        judging, targets = self.judging(encoding), test.take(np.arange(len(test)), ["target"])
        return {"training_mean": metrics(judging, judging.judge({"predicted": np.zeros(len(test))}, targets))}

    def judging(self, encoding: RegressionEncoding) -> RegressionJudging:
        return RegressionJudging(encoding.target_mean, encoding.target_deviation)


class RegressionJudging(ErrorJudging):
    """Errors in the target's own unit, but for the loss, which is the mean squared error of z."""

    def __init__(self, mean: float, deviation: float) -> None:
        self._mean, self.deviation = mean, deviation

    def judge(self, outputs: Arrays, examples: Arrays) -> Judged:
        truth_N, predicted_N = (z.astype(np.float64) * self.deviation + self._mean for z in (examples["target"], outputs["predicted"]))
        return self.compared(truth_N, predicted_N)

    def from_means(self, means: Mapping[str, float]) -> dict[str, float]:
        mse, spread = means["loss"] * self.deviation**2, means["target_squared"] - means["target"] ** 2
        curves = {"loss": means["loss"], "mse": mse, "mae": means["absolute"] * self.deviation, "rmse": math.sqrt(mse)}
        return curves | ({"r2": 1 - means["loss"] / spread} if spread > _LEAST_SPREAD else {})

    def joint_metrics(self, judged: Judged) -> dict[str, float]:
        truth_N, squared_N = judged.columns["truth"], judged.scores["mse"].total
        spread = float(np.square(truth_N - truth_N.mean()).sum())
        return {"r2": 1 - float(squared_N.sum()) / spread if spread else float("nan")}

    def figures(self, judged: Judged) -> dict[str, Figure]:
        from . import drawing

        pair = judged.columns["truth"], judged.columns["predicted"]
        return {"predicted_against_true": drawing.against_true(*pair), "residuals": drawing.residuals(*pair)}
