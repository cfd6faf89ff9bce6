"""Series to windows, scores and forecasts in their own units, each worked out by hand; and no look at what is to be forecast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipelines.data import preparation
from pipelines.errors import RecipeError
from tests import runs
from workloads.base import DataError, count_examples
from workloads.rnn import Forecaster
from workloads.served import Served
from workloads.tasks.forecasting import SeriesEncoding

ROWS = 200
TASK = Forecaster(window=4, horizon=2, season=3)
RAMP = np.arange(ROWS, dtype=float)
HOURS = pd.date_range("2020-01-01", periods=ROWS, freq="h").to_numpy()


class Stored:
    """Rows held in memory."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {name: self.columns[name][index] for name in columns or self.columns}


def plain(series: int = 1) -> SeriesEncoding:
    """An encoding that leaves values as they are."""
    return SeriesEncoding(names=tuple("abcdef"[:series]), mean=(0.0,) * series, deviation=(1.0,) * series)


def written(folder: Path, **columns: Any) -> Path:
    """A CSV file of these columns."""
    path = folder / "series.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def prepared(folder: Path, *overrides: str, **columns: Any) -> tuple[Forecaster, preparation.Dataset, SeriesEncoding]:
    run = runs.load(
        folder,
        f"data.source={written(folder, **columns)}",
        "model.window=10",
        "model.season=5",
        "model.horizon=3",
        "model.time=null",
        "model.targets=[]",
        "train.batch=8",
        "train.micro_batch=null",
        *overrides,
        recipe="lstm",
    )
    dataset = preparation.prepare(run, preparation.plan(run), preparation.in_process)
    return run.model, dataset, run.model.encoding_type.model_validate(dataset.manifest.encoding)


# ---- which rows a window sees


@pytest.mark.parametrize("splits", ["{train: 0.6, validation: 0.2, test: 0.2}", "{train: 120, validation: 40, test: 30}"])
def test_training_sees_no_later_row_and_what_is_forecast_lies_inside_its_split(tmp_path: Path, splits: str) -> None:
    task, dataset, encoding = prepared(tmp_path, f"data.splits={splits}", ramp=RAMP)
    last = 200 if "0.6" in splits else 190
    parts = {"train": (0, 120), "validation": (120, 160), "test": (160, last)}
    for split, (first, stop) in parts.items():
        windows = task.examples(getattr(dataset, split), training=split == "train")
        values = windows.take(np.arange(len(windows)))["values"][:, :, 0] * encoding.deviation[0] + encoding.mean[0]
        rows = values.round().astype(int)
        np.testing.assert_allclose(values, rows, atol=1e-3)
        assert (np.diff(rows) == 1).all()
        ahead = rows[:, 10:]
        looked_back = 10 if split == "train" else 0
        assert (ahead.min(), ahead.max()) == (first + looked_back, stop - 1)
        assert rows[:, :10].min() == first - 10 + looked_back
        assert np.unique(rows[:, 10]).tolist() == list(range(first + looked_back, stop - 2))


def test_mean_and_deviation_are_those_of_the_training_rows_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(5, 3, ROWS)
    _, dataset, encoding = prepared(tmp_path, "data.splits={train: 120, validation: 40, test: 40}", noise=noise)
    assert encoding.mean == pytest.approx([noise[:120].mean()], rel=1e-12)
    assert encoding.deviation == pytest.approx([noise[:120].std()], rel=1e-12)
    stored = dataset.test.take(np.arange(len(dataset.test)))["values"]
    np.testing.assert_allclose(stored[:, 0], (noise[150:] - noise[:120].mean()) / noise[:120].std(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "training", "sentence"),
    [
        (50, True, "50 rows are fewer than a window of 96 and a horizon of 24 need: 120"),
        (
            119,
            False,
            "119 rows (96 before the split, to look back on, included) are fewer than a window of 96 and a horizon of 24 need: 120",
        ),
    ],
)
def test_a_split_without_a_window_is_refused_with_the_arithmetic(rows: int, training: bool, sentence: str) -> None:
    task = Forecaster(window=96, horizon=24)
    for ask in (
        lambda: count_examples(task, rows, training=training),
        lambda: task.examples(Stored(values=np.zeros((rows, 1))), training=training),
    ):
        with pytest.raises(DataError) as error:
            ask()
        assert str(error.value) == sentence
    assert count_examples(task, 120, training=training) == 1


def test_a_series_shorter_than_the_window_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"series.csv, test split: 12 rows \(10 before the split.*need: 13"):
        prepared(tmp_path, "data.splits={train: 188, validation: 10, test: 2}", ramp=RAMP)


# ---- which columns are series


def test_every_column_of_numbers_is_a_series_but_the_time() -> None:
    raw = {"hour": np.arange(5), "a": np.arange(5.0), "name": np.array(list("vwxyz"), dtype=object), "b": np.arange(5), "when": HOURS[:5]}
    task = Forecaster(time="hour", targets=("b",))
    assert task.read_columns(tuple(raw)) == tuple(raw)
    assert task.fit([raw]).names == ("b", "a")
    assert Forecaster().fit([raw]).names == ("hour", "a", "b")


def test_series_that_were_stated_are_all_that_is_read() -> None:
    assert Forecaster(series=("a", "b"), time="hour").read_columns(("hour", "c", "b", "a")) == ("a", "b", "hour")
    raw = {"a": np.arange(5.0), "b": np.arange(5.0), "hour": np.arange(5)}
    assert Forecaster(series=("a", "b"), targets=("b",), time="hour").fit([raw]).names == ("b", "a")


@pytest.mark.parametrize("settings", [{"series": ("demnd",)}, {"targets": ("demnd",)}, {"time": "demnd"}])
def test_a_column_that_is_not_there_is_named_with_the_nearest(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"no column 'demnd'; did you mean .*demand"):
        Forecaster(**settings).read_columns(("hour", "demand"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": 12}, "model.season=24 is longer than model.window=12"),
        ({"series": ("a", "b"), "targets": ("c",)}, r"model.targets: 'c' is not in model.series \(a, b\)"),
        ({"series": ("a", "b"), "time": "b"}, "model.series: 'b' is model.time"),
        ({"targets": ("b",), "time": "b"}, "model.targets: 'b' is model.time"),
        ({"series": ("a", "a")}, "stated twice"),
        ({"horizon": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_agree_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Forecaster(**settings)


def test_the_command_line_is_told_which_settings_do_not_agree(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model.season=24 is longer than model.window=12"):
        runs.load(tmp_path, "model.window=12", recipe="lstm")


@pytest.mark.parametrize(
    ("raw", "settings", "sentence"),
    [
        ({"a": np.array(["x", "y"], dtype=object)}, {}, "no column holds numbers, so there is no series; columns: a"),
        ({"a": np.arange(2.0), "b": HOURS[:2]}, {"targets": ("b",)}, "column b: holds no numbers, so it cannot be forecast"),
    ],
)
def test_without_numbers_there_is_no_series(raw: dict[str, np.ndarray], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Forecaster(**settings).fit([raw])


# ---- values that are no numbers


BAD = [
    (np.nan, "column b: is missing; a series needs a finite number in every row"),
    (np.inf, "column b: inf is too large"),
    (-np.inf, "column b: -inf is too large"),
    (1e300, "column b: 1e.300 is too large"),
    (None, "column b: is missing"),
    ("broken", "column b: 'broken' is not a number"),
    (10**400, "column b: '10000.* is not a number"),
]


@pytest.mark.parametrize("settings", [{}, {"series": ("a", "b")}], ids=["found", "stated"])
@pytest.mark.parametrize(("value", "sentence"), BAD)
def test_what_is_no_number_is_refused_with_its_row_and_column(value: Any, sentence: str, settings: dict[str, Any]) -> None:
    b = np.arange(9.0).astype(float if isinstance(value, float) else object)
    b[6] = value
    task, bad = Forecaster(**settings), {"a": np.arange(9), "b": b}
    for refuse in (lambda: task.fit([bad]), lambda: task.encode(bad, plain(2))):
        with pytest.raises(DataError, match=sentence) as error:
            refuse()
        assert error.value.row == 6


@pytest.mark.parametrize(("row", "value"), [(30, ""), (130, ""), (190, ""), (30, "inf"), (190, "x")])
def test_the_row_in_the_file_is_named_whichever_split_it_lies_in(tmp_path: Path, row: int, value: str) -> None:
    b = RAMP.astype(str)
    b[row] = value
    with pytest.raises(DataError, match=f"series.csv, row {row}: column b: "):
        prepared(tmp_path, a=RAMP, b=b)


def test_rows_out_of_the_order_of_time_are_refused() -> None:
    task = Forecaster(window=4, season=3, time="when")
    raw = {"when": HOURS[:9].copy(), "a": np.arange(9.0)}
    assert task.fit([raw, {"when": HOURS[8:12], "a": np.arange(4.0)}]).names == ("a",)
    with pytest.raises(
        DataError, match=r"column when: 2020-01-01T00.* follows 2020-01-01T08.*; rows must be in the order of time"
    ) as error:
        task.fit([raw, {"when": HOURS[:3], "a": np.arange(3.0)}])
    assert error.value.row == 0
    raw["when"][5] = HOURS[3]
    with pytest.raises(DataError, match="column when") as error:
        task.encode(raw, plain())
    assert error.value.row == 5


def test_times_in_words_are_not_compared() -> None:
    words = np.array(["monday", "friday", "april"], dtype=object)
    assert Forecaster(time="when").fit([{"when": words, "a": np.arange(3.0)}]).names == ("a",)


# ---- standardising


@given(
    level=st.floats(-1e6, 1e6),
    scale=st.floats(1e-2, 1e6),
    cuts=st.lists(st.integers(1, 49), max_size=3),
)
def test_mean_and_deviation_are_numpys_however_the_rows_come(level: float, scale: float, cuts: list[int]) -> None:
    values = level + scale * np.random.default_rng(0).normal(size=50)
    encoding = TASK.fit([{"a": part} for part in np.split(values, sorted(set(cuts)))])
    assert encoding.mean[0] == pytest.approx(values.mean(), rel=1e-12, abs=1e-9 * scale)
    assert encoding.deviation[0] == pytest.approx(values.std(), rel=1e-6)


def test_decoding_undoes_the_standardising_to_seven_digits_of_the_deviation() -> None:
    raw = {"pressure": 1_013_250.3 + np.sin(RAMP), "b": RAMP}
    encoding = TASK.fit([raw])
    stored = TASK.encode(raw, encoding)["values"]
    assert stored.dtype == np.float32
    decoded = np.array(TASK.serving(encoding).decode({"forecast": stored[None]})["forecast"])
    np.testing.assert_allclose(decoded[0], np.stack(list(raw.values()), axis=1), rtol=0, atol=1e-5)


def test_a_series_that_never_changed_keeps_its_unit() -> None:
    encoding = TASK.fit([{"a": np.full(9, 7.0)}])
    assert TASK.encode({"a": np.array([7.0, 9.0])}, encoding)["values"].tolist() == [[0.0], [2.0]]


def test_the_encoding_survives_json() -> None:
    encoding = TASK.fit([{"a": np.sin(RAMP), "b": RAMP / 3}])
    assert SeriesEncoding.model_validate_json(encoding.model_dump_json()) == encoding


# ---- scores, naive answers, figures


class Says(nn.Module):
    """Forecasts the same whatever it is shown, and remembers what it was shown."""

    def __init__(self, *ahead: Sequence[float]) -> None:
        super().__init__()
        self.ahead_HK = nn.Parameter(torch.tensor(ahead))

    def forward(self, x_BTS: torch.Tensor) -> torch.Tensor:
        self.shown = x_BTS
        return self.ahead_HK.expand(len(x_BTS), *self.ahead_HK.shape)


def test_loss_and_errors_are_sums_over_values_and_their_count() -> None:
    task = Forecaster(window=3, horizon=2, season=3, targets=("a",))
    values = torch.tensor([[[0, 9], [0, 9], [0, 9], [1, 9], [2, 9]], [[0, 9], [0, 9], [0, 9], [4, 9], [4, 9]]]).float()
    model = Says([1.0], [5.0])
    scores = task.step(model, {"values": values})
    # errors 0, 3 and -3, 1
    assert {name: (float(mean.total.detach()), mean.count) for name, mean in scores.items()} == {
        "loss": (19.0, 4),
        "mse": (19.0, 4),
        "mae": (7.0, 4),
    }
    assert torch.equal(model.shown, values[:, :3])
    scores["loss"].total.backward()
    assert model.ahead_HK.grad.ravel().tolist() == [2 * (0 - 3), 2 * (3 + 1)]


def test_a_batch_without_rows_adds_nothing() -> None:
    scores = TASK.step(Says([1.0], [1.0]), {"values": torch.zeros(0, 6, 1)})
    assert {name: (float(mean.total.detach()), mean.count) for name, mean in scores.items()} == dict.fromkeys(
        ("loss", "mse", "mae"), (0.0, 0)
    )


def test_the_naive_answers_repeat_the_last_value_and_the_last_season() -> None:
    task = Forecaster(window=4, horizon=4, season=3, targets=("a",))
    a = np.array([5, 1, 2, 4, 1, 2, 9, 1, 0], dtype=np.float32)
    test = task.examples(Stored(values=np.stack([a, 100 * a], axis=1)), training=False)
    assert len(test) == 2
    answers = task.baselines(test, test, plain(2))
    # windows 5 1 2 4 -> 1 2 9 1 and 1 2 4 1 -> 2 9 1 0; last values 4 and 1; seasons 1 2 4 (1) and 2 4 1 (2)
    last = np.array([[4 - 1, 4 - 2, 4 - 9, 4 - 1], [1 - 2, 1 - 9, 1 - 1, 1 - 0]])
    season = np.array([[0, 0, 4 - 9, 0], [0, 4 - 9, 0, 2 - 0]])
    assert answers == {
        "last_value": pytest.approx({"mse": (last**2).mean(), "mae": np.abs(last).mean()}),
        "seasonal_naive": pytest.approx({"mse": (season**2).mean(), "mae": np.abs(season).mean()}),
    }


def test_the_naive_answers_are_scored_on_every_test_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.tasks.forecasting._CHUNK_VALUES", 7 * 6 * 2)
    values = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    windows = np.stack([values[start : start + 6] for start in range(35)]).astype(float)
    test = TASK.examples(Stored(values=values), training=False)
    assert TASK.baselines(test, test, plain(2))["last_value"] == pytest.approx(
        {"mse": np.square(windows[:, 4:] - windows[:, 3:4]).mean(), "mae": np.abs(windows[:, 4:] - windows[:, 3:4]).mean()}
    )


def test_the_figures_show_windows_in_their_own_units_and_the_error_of_each_step() -> None:
    values = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    encoding = SeriesEncoding(names=("a", "b"), mean=(10.0, 20.0), deviation=(2.0, 3.0))
    test = TASK.examples(Stored(values=values), training=False)
    forecast = np.stack([values[start + 4 : start + 6] for start in range(35)]) + np.array([[1.0], [2.0]], dtype=np.float32)
    figures = TASK.figures(nn.Identity(), {"forecast": forecast}, test, encoding)
    grid = figures["forecast"].axes
    assert [axes.get_title() for axes in grid] == ["from test row 0", "from test row 17", "from test row 34", "", "", ""]
    series, said = grid[1].lines
    np.testing.assert_allclose(series.get_ydata(), values[17:23, 0] * 2.0 + 10.0, rtol=1e-5)
    np.testing.assert_allclose(said.get_ydata(), forecast[17, :, 0] * 2.0 + 10.0, rtol=1e-5)
    assert series.get_xdata().tolist() == [-3, -2, -1, 0, 1, 2]
    assert said.get_xdata().tolist() == [1, 2]
    assert grid[3].get_ylabel() == "b"
    curves = {line.get_label().partition(" (")[0]: line.get_ydata() for line in figures["error_by_horizon"].axes[0].lines}
    assert curves["this model"] == pytest.approx([1.0, 4.0], rel=1e-5)
    naive = TASK.baselines(test, test, encoding)
    assert {name: curves[name.replace("_", " ")].mean() for name in naive} == pytest.approx({k: v["mse"] for k, v in naive.items()})


# ---- a registered model


def test_raw_windows_are_answered_in_their_own_units() -> None:
    task = Forecaster(window=4, horizon=2, season=3, residual=True, targets=("b",))
    raw = {"a": 1e6 + np.sin(RAMP), "b": 50 + 3 * RAMP, "name": np.array(["x"] * ROWS)}
    encoding = task.fit([raw])
    network = task.network(encoding)
    with torch.no_grad():
        network.head.weight.zero_()
    served = Served(task, encoding, network)
    windows = task.serving(encoding).example({name: column[: task.context + task.sample_rows] for name, column in raw.items()})
    assert windows.shape == (8, 4, 2)
    np.testing.assert_array_equal(windows[5], np.stack([raw["b"][5:9], raw["a"][5:9]], axis=1))
    answer = served.predict(windows)
    assert list(answer) == ["forecast"]
    # without weights the answer is the last value of b
    assert [each for row in answer["forecast"] for each in row] == pytest.approx(np.repeat(raw["b"][3:11], 2), abs=1e-4)


def test_windows_of_a_single_series_need_no_third_axis() -> None:
    raw = {"a": np.sin(RAMP)}
    encoding = TASK.fit([raw])
    windows = TASK.serving(encoding).example({"a": raw["a"][: TASK.context + TASK.sample_rows]})
    assert windows.shape == (8, 4)
    flat, deep = TASK.serving(encoding).inputs(windows)["values"], TASK.serving(encoding).inputs(windows[:, :, None])["values"]
    np.testing.assert_array_equal(flat, deep)
    np.testing.assert_array_equal(flat, TASK.serving(encoding).inputs(windows.tolist())["values"])
    np.testing.assert_array_equal(flat, TASK.serving(encoding).inputs(pd.DataFrame(windows))["values"])
    stored = TASK.examples(Stored(**TASK.encode(raw, encoding)), training=True).take(np.arange(8))["values"]
    np.testing.assert_array_equal(flat, stored[:, :4])


def test_several_targets_are_answered_step_by_step() -> None:
    forecast = np.arange(12.0).reshape(2, 3, 2)
    assert TASK.serving(plain(2)).decode({"forecast": forecast}) == {"forecast": forecast.tolist()}
    assert TASK.serving(plain(2)).decode({"forecast": forecast[:, :, :1]}) == {"forecast": forecast[:, :, 0].tolist()}


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((3, 5, 2)),
        np.zeros((3, 4, 1)),
        np.zeros((3, 4)),
        np.zeros(4),
        np.full((3, 4, 2), "1"),
        [["text"]],
        [[1, 2], [3]],
        None,
        {"values": 1},
        np.zeros((3, 4, 2), dtype=complex),
    ],
    ids=["longer", "fewer series", "no series axis", "one row", "digits as text", "text", "ragged", "none", "a mapping", "complex"],
)
def test_what_is_no_window_is_refused_with_what_would_be_right(given: Any) -> None:
    with pytest.raises(DataError, match=r"windows must be numbers \(rows, 4, 2\), the series being a, b"):
        TASK.serving(plain(2)).inputs(given)


@pytest.mark.parametrize("value", [None, np.nan, np.inf, 1e300])
def test_a_window_with_a_hole_is_refused_with_its_row_and_column(value: Any) -> None:
    windows: Any = np.zeros((3, 4, 2)).tolist()
    windows[2][1][1] = value
    with pytest.raises(DataError, match="column b, row 1 of the window: ") as error:
        TASK.serving(plain(2)).inputs(windows)
    assert error.value.row == 2


def test_no_window_at_all_gets_no_answer() -> None:
    encoding = plain()
    assert len(Served(TASK, encoding, TASK.network(encoding)).predict(np.zeros((0, 4)))) == 0
