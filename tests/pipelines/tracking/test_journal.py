"""The journal keeps every point once, whatever tears it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipelines.tracking.journal import Journal, Point, read, read_from


def write(path: Path, *points: tuple[int, dict[str, float]]) -> None:
    journal = Journal(path)
    for step, metrics in points:
        journal.write(step, metrics)
    journal.close()


def points(path: Path) -> list[tuple[int, dict[str, float]]]:
    return [(point.step, dict(point.metrics)) for point in read(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def test_points_come_back_in_order(path: Path) -> None:
    written = [(1, {"loss": 0.1}), (2, {"loss": 1 / 3, "lr": 1e-300}), (2, {"val/loss": -2.5})]
    write(path, *written)
    assert points(path) == written


def test_where_there_is_no_file_there_are_no_points(path: Path) -> None:
    assert points(path) == []


@pytest.mark.parametrize("lost", range(1, 40))
def test_a_torn_last_line_is_cut_and_the_next_point_stands_alone(path: Path, lost: int) -> None:
    write(path, (1, {"loss": 0.5}), (2, {"loss": 0.25}))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:-lost])
    assert points(path) == [(1, {"loss": 0.5})]
    write(path, (2, {"loss": 0.125}))
    assert points(path) == [(1, {"loss": 0.5}), (2, {"loss": 0.125})]


def test_a_journal_of_one_torn_line_starts_anew(path: Path) -> None:
    write(path)
    path.write_bytes(b'{"step": 1, "ti')
    write(path, (1, {"loss": 0.5}))
    assert points(path) == [(1, {"loss": 0.5})]


def test_replayed_steps_add_no_second_point(path: Path) -> None:
    write(path, (1, {"loss": 0.5}), (2, {"loss": 0.25, "val/loss": 1.0}), (3, {"loss": 0.2}))
    before = path.read_bytes()
    write(path, (2, {"loss": 9.0, "val/loss": 9.0}), (3, {"loss": 9.0}))
    assert path.read_bytes() == before


def test_a_resumed_run_appends_what_is_new(path: Path) -> None:
    write(path, (1, {"loss": 0.5}), (2, {"loss": 0.25}))
    write(path, (2, {"loss": 9.0, "val/loss": 1.0}), (3, {"loss": 0.2}))
    assert points(path) == [(1, {"loss": 0.5}), (2, {"loss": 0.25}), (2, {"val/loss": 1.0}), (3, {"loss": 0.2})]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_survives(path: Path, value: float) -> None:
    write(path, (1, {"loss": value}), (2, {"loss": 0.5}))
    ((_, first), second) = points(path)
    assert str(first["loss"]) == str(value)
    assert second == (2, {"loss": 0.5})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_reading_goes_on_from_an_offset(path: Path) -> None:
    write(path, (1, {"loss": 0.5}), (2, {"loss": 0.25}), (3, {"loss": 0.125}))
    seen = list(read_from(path, 0))
    assert [point.step for point, _ in seen] == [1, 2, 3]
    for place, (_, offset) in enumerate(seen):
        assert [point for point, _ in read_from(path, offset)] == [point for point, _ in seen[place + 1 :]]
    assert seen[-1][1] == path.stat().st_size


def test_a_reader_waits_for_the_end_of_a_line(path: Path) -> None:
    write(path, (1, {"loss": 0.5}), (2, {"loss": 0.25}))
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    ((first, offset),) = read_from(path, 0)
    assert first.step == 1
    path.write_bytes(content)
    assert [point.metrics for point, _ in read_from(path, offset)] == [{"loss": 0.25}]


def test_a_point_keeps_the_time_it_was_first_written(path: Path) -> None:
    write(path, (1, {"loss": 0.5}))
    (first,) = read(path)
    write(path, (1, {"loss": 0.5}))
    assert list(read(path)) == [first]
    assert isinstance(first, Point)
    assert first.time > 1_500_000_000_000  # milliseconds


def test_a_text_is_kept_once_for_each_step(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(10, {"val/loss": 2.0}, {"sample": "first"})
    journal.close()
    again = Journal(tmp_path / "journal.jsonl")
    again.write(10, {"val/loss": 9.0}, {"sample": "replayed"})
    again.write(20, {}, {"sample": "second\nline"})
    again.close()
    points = list(read(tmp_path / "journal.jsonl"))
    assert [(point.step, dict(point.metrics), dict(point.texts)) for point in points] == [
        (10, {"val/loss": 2.0}, {"sample": "first"}),
        (20, {}, {"sample": "second\nline"}),
    ]
