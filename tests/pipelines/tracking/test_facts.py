"""What is likely to blame for other numbers: all that differs, the likeliest first."""

from __future__ import annotations

from pipelines.tracking.facts import causes

THEN = {
    "code": {"commit": "aaa", "program": "p1", "network": "n1", "diff": "none"},
    "data": {"fingerprint": "f1"},
    "packages": {"torch": "2.12.0", "numpy": "2.4.6"},
    "environment": {"threads": "1", "workers": "2", "hardware": "EPYC, AVX512, 2 cores"},
}


def now(**changes):
    return {group: values | changes.get(group, {}) for group, values in THEN.items()}


def test_nothing_is_to_blame_where_nothing_differs():
    assert causes(THEN, now()) == []


def test_a_commit_of_the_same_files_is_the_same_code():
    assert causes(THEN, now(code={"commit": "bbb"})) == []
    [code] = causes(THEN, now(code={"commit": "bbb", "program": "p2"}))
    assert str(code) == "code: commit aaa, program p1 then, commit bbb, program p2 now"


def test_without_a_hash_of_the_files_the_commit_and_what_differed_from_it_decide():
    then = THEN | {"code": {"commit": "aaa", "diff": "none"}}
    assert causes(then, now(code={"program": "p9"})) == []
    assert [cause.kind for cause in causes(then, now(code={"diff": "d1"}))] == ["code"]


def test_rounding_is_blamed_on_the_machine_and_more_than_that_on_data_and_code():
    changed = now(
        code={"program": "p2"}, data={"fingerprint": "f2"}, packages={"torch": "2.13.0"}, environment={"threads": "4", "hardware": "ARM"}
    )
    assert [cause.kind for cause in causes(THEN, changed, 1e-7)] == ["packages", "threads", "hardware", "code", "data"]
    assert [cause.kind for cause in causes(THEN, changed, 0.3)] == ["data", "code", "packages", "threads", "hardware"]
    assert str(causes(THEN, changed, 1e-7)[0]) == "packages: torch 2.12.0 then, torch 2.13.0 now"


def test_what_was_not_written_down_is_not_blamed():
    assert causes({"code": {}, "data": {}, "packages": {}, "environment": {}}, now()) == []
