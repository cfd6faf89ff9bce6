"""Recipes and overrides: what loads, and every sentence about what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import config
from pipelines.config import load
from pipelines.errors import RecipeError

SOUND = "workload: cnn\ndata:\n  source: digits\ntrain:\n  steps: 5\n"


def problems(recipe: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(str(recipe), overrides)
    return list(error.value.problems)


def only_problem(recipe: str | Path, *overrides: str) -> str:
    (problem,) = problems(recipe, *overrides)
    return problem


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SOUND)
    return path


def test_every_problem_is_told_at_once_with_its_line_and_the_nearest_name(recipe: Path) -> None:
    recipe.write_text("workload: cnn\nmodel:\n  filtres: 8\ndata:\n  source: digits\ntrain:\n  steps: 5\n  batch: many\noptim:\n  lrr: 1\n")
    found = sorted(problems(recipe, "optim.clip=-1", "nonsense"))
    assert found == [
        "model.filtres: no such setting; did you mean model.filters? (mine.yaml:3)",
        "nonsense: an override is written key.path=value",
        "optim.clip: input should be greater than 0, not -1 (command line)",
        "optim.lrr: no such setting; did you mean optim.lr? (mine.yaml:10)",
        "train.batch: input should be a valid integer, unable to parse string as an integer, not 'many' (mine.yaml:8)",
    ]


def test_a_missing_workload_is_told_once(recipe: Path) -> None:
    recipe.write_text("data: {source: digits}\ntrain: {steps: 5}\n")
    assert len([problem for problem in problems(recipe) if problem.startswith("workload:")]) == 1


@pytest.mark.parametrize(("name", "hint"), [("cn", "did you mean cnn?"), ("no-such-thing", "there are: "), ("", "there are: ")])
def test_an_unknown_recipe_is_told_with_the_known_ones(name: str, hint: str) -> None:
    assert hint in only_problem(name)


@pytest.mark.parametrize("name", ["../cnn", "/cnn", "no/where.yaml", "missing.yaml", ".", "/"])
def test_a_recipe_file_that_is_not_there_is_told(name: str) -> None:
    assert name in only_problem(name)


def test_a_recipe_file_is_named_by_its_stem(recipe: Path) -> None:
    assert load(str(recipe)).run.recipe == "mine"


def test_a_recipe_cannot_call_itself_by_another_name(recipe: Path) -> None:
    recipe.write_text(SOUND + "recipe: cnn\n")
    assert only_problem(recipe).startswith("recipe:")
    assert only_problem("cnn", "recipe=mine").startswith("recipe:")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a recipe is a mapping of settings"),
        ("- cnn", "a recipe is a mapping of settings"),
        ("workload: cnn\n  model: x: y", "mine.yaml:2: not YAML"),
        ("data: &d {source: digits}\nmodel: *d", "YAML aliases (*name) are not read"),
        ("workload: cnn\nmodel: !!python/object/apply:os.getpid []", "not YAML"),
        ("workload: cnn\nworkload: cnn", "workload: written twice (mine.yaml:1 and mine.yaml:2)"),
        ("#" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(recipe: Path, text: str, sentence: str) -> None:
    recipe.write_text(text)
    assert any(sentence in problem for problem in problems(recipe))


def test_an_override_wins_over_the_recipe_and_a_later_one_over_an_earlier(recipe: Path) -> None:
    run = load(str(recipe), ["train.batch=16", "optim.lr=1e-2", "train.batch=32"]).run
    assert (run.train.batch, run.optim.lr) == (32, 0.01)


def test_a_finer_override_keeps_the_rest_of_an_earlier_group(recipe: Path) -> None:
    run = load(str(recipe), ["model={filters: 8}", "model.hidden=16"]).run
    assert (run.model.filters, run.model.hidden) == (8, 16)


def test_overrides_are_typed_as_yaml(recipe: Path) -> None:
    run = load(str(recipe), ["model.classes=[a, 1, b=c]", "train.compile=true", "train.micro_batch=null", "name=007-x"]).run
    assert (run.model.classes, run.train.compile, run.train.micro_batch, run.name) == (("a", "1", "b=c"), True, None, "007-x")


def test_each_setting_knows_where_it_came_from(recipe: Path) -> None:
    rows = load(str(recipe), ["optim.lr=0.5", "data.splits={train: 0.6, validation: 0.2, test: 0.2}"]).settings()
    assert rows["train.steps"] == {"value": 5, "origin": "recipe"}
    assert rows["optim.lr"] == {"value": 0.5, "origin": "command line"}
    assert rows["data.splits.test"] == {"value": 0.2, "origin": "command line"}
    assert rows["train.batch"] == {"value": 128, "origin": "default"}


def test_the_chosen_settings_are_those_that_were_set(recipe: Path) -> None:
    assert load(str(recipe), ["optim.lr=0.5"]).chosen() == {"workload": "cnn", "data.source": "digits", "train.steps": 5, "optim.lr": 0.5}


def test_steps_and_epochs_replace_each_other_on_the_command_line(recipe: Path) -> None:
    first = load(str(recipe), ["train.epochs=3"]).run.train
    second = load(str(recipe), ["train.epochs=3", "train.steps=7"]).run.train
    assert (first.epochs, first.steps, second.epochs, second.steps) == (3, None, None, 7)


def test_a_recipe_with_both_lengths_or_none_is_refused(recipe: Path) -> None:
    recipe.write_text(SOUND + "  epochs: 2\n")
    assert "state either train.epochs or train.steps" in only_problem(recipe)
    assert "state either train.epochs or train.steps" in only_problem(recipe, "train.steps=null", "train.epochs=null")


@pytest.mark.parametrize("key", ["name", "track.experiment", "track.register"])
@pytest.mark.parametrize("value", ["../x", "/x", "a/b", "..", ".hidden", "-x", "'a b'", "A", "x" * 64, '"a\\n"'])
def test_names_that_could_be_paths_are_refused(key: str, value: str) -> None:
    assert all(problem.startswith(key) for problem in problems("cnn", f"{key}={value}"))


@pytest.mark.parametrize(
    "workload", ["os", "os:system", "../x", "workloads.cnn:os", "cnn:Nothing", "layers", "cmn", ".cnn", "", "{a: b}", "CNN"]
)
def test_a_workload_outside_the_workloads_is_refused(workload: str) -> None:
    assert all(problem.startswith("workload:") for problem in problems("cnn", f"workload={workload}"))


@pytest.mark.parametrize("workload", ["base", "base:Workload", "tasks.image_classification"])
def test_a_task_without_a_network_is_refused(recipe: Path, workload: str) -> None:
    assert only_problem(recipe, f"workload={workload}").startswith("workload:")


def test_a_workload_may_be_named_by_its_class(recipe: Path) -> None:
    assert type(load(str(recipe), ["workload=workloads.cnn:CNN"]).run.model) is type(load(str(recipe)).run.model)


def test_a_micro_batch_larger_than_the_batch_is_refused(recipe: Path) -> None:
    assert "train.micro_batch=64 is larger than train.batch=32" in only_problem(recipe, "train.batch=32", "train.micro_batch=64")


@pytest.mark.parametrize("overrides", [["train.batch=2", "scale.workers=3"], ["train.micro_batch=64", "scale.workers=3"]])
def test_workers_that_would_have_no_rows_are_refused(recipe: Path, overrides: list[str]) -> None:
    assert "scale.workers=3" in only_problem(recipe, *overrides)


@pytest.mark.parametrize("splits", ["{train: 0.9}", "{train: 1.0, validation: 0.0, test: 0.0}", "{train: 0.5, validation: 0.1, test: 0.1}"])
def test_shares_that_are_no_partition_are_refused(recipe: Path, splits: str) -> None:
    assert problems(recipe, f"data.splits={splits}")


@pytest.mark.parametrize("override", ["optim.lr=.inf", "optim.lr=.nan", "optim.weight_decay=.inf"])
def test_rates_must_be_finite(recipe: Path, override: str) -> None:
    assert only_problem(recipe, override).startswith(override.partition("=")[0])


def test_a_seed_that_no_generator_takes_is_refused_before_training(recipe: Path) -> None:
    assert only_problem(recipe, f"train.seed={2**64}").startswith("train.seed")


@pytest.mark.parametrize(
    "override",
    ["scale.workers=4", "scale.threads=2", "track.experiment=x", "train.log_every=1", "train.eval_every=3", "train.checkpoint_every=7"],
)
def test_where_and_how_often_a_run_is_watched_is_no_part_of_its_identity(override: str) -> None:
    assert load("cnn", [override]).run.identity("data") == load("cnn").run.identity("data")


@pytest.mark.parametrize(
    "override",
    ["optim.lr=0.5", "model.hidden=7", "train.seed=1", "train.batch=64", "train.epochs=3", "train.precision=bf16", "optim.clip=1"],
)
def test_what_decides_the_weights_is_part_of_the_identity(override: str) -> None:
    assert load("cnn", [override]).run.identity("data") != load("cnn").run.identity("data")


def test_other_data_are_another_identity() -> None:
    assert load("cnn").run.identity("data") != load("cnn").run.identity("other")


KEYS = st.one_of(
    st.sampled_from(sorted(load("cnn").settings())),
    st.sampled_from(["model", "data", "train", "optim", "scale", "track", "data.splits", "recipe", "track.register"]),
    st.text(max_size=12),
    st.lists(st.sampled_from(["model", "train", "", "a", "0"]), max_size=50).map(".".join),
)
NESTED = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("*a"), st.just("&a b"), st.just("!!int x")
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(map(str, parts))}]"),
        st.dictionaries(st.sampled_from(["steps", "train", "1", "source", "x"]), inner, max_size=3).map(
            lambda parts: "{" + ", ".join(f"{name}: {part}" for name, part in parts.items()) + "}"
        ),
    ),
    max_leaves=6,
).map(str)
TAGGED = st.builds(
    "!!{} {}".format,
    st.sampled_from(["int", "float", "bool", "null", "str", "binary", "timestamp", "set", "omap", "pairs", "map", "seq"]),
    st.sampled_from(["x", "1", "''", "[a]", "{a: b}", "2024-99-99"]),
)
VALUES = st.one_of(st.text(max_size=20), NESTED, TAGGED)
DAMAGED = [  # each one found by asking for it: text that YAML's own constructors choke on
    "optim.lr=2024-99-99",
    "optim.lr=0b_",
    "optim.lr=!!timestamp x",
    "optim.lr=!!bool x",
    "train.keep=!!int x",
    "train.batch=" + "9" * 5000,
    "train.batch=-0x" + "f" * 5000,
    "model.classes=" + "[" * 700 + "]" * 700,
    "model." + "a." * 3000 + "b=1",
    "optim.lr=\x00",
    "optim.lr=\ud800",
    "storage=\x00",
    "data.source=\x07",
]


def loads_or_says_why(recipe: str, overrides: list[str]) -> None:
    try:
        loaded = load(recipe, overrides)
    except RecipeError as error:
        told = [problem.strip() for problem in error.problems]
    else:
        told = [loaded.run.identity("data"), *loaded.settings()]
    assert told
    assert all(told)


@pytest.mark.parametrize("override", DAMAGED, ids=range(len(DAMAGED)))
def test_a_hostile_override_loads_or_is_refused(override: str) -> None:
    loads_or_says_why("cnn", [override])


@settings(max_examples=150)
@given(st.lists(st.builds("{}={}".format, KEYS, VALUES) | st.text(max_size=20), min_size=1, max_size=3))
@example(["train={steps: 3}", "train.steps.x=3"])
def test_any_override_loads_or_is_refused(overrides: list[str]) -> None:
    loads_or_says_why("cnn", overrides)


FRAGMENTS = [
    "workload: cnn\n",
    "train: {steps: 3}\n",
    "data:\n  source: ",
    "digits\n",
    "? ",
    "[",
    "{",
    "}",
    "]",
    ": ",
    "- ",
    "|\n",
    "!!set ",
    "\t",
    "x",
]


@settings(max_examples=150)
@given(st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join).map(str.encode), st.binary(max_size=60)))
@example(SOUND.encode() + b"  batch: 2024-99-99\n")
@example(b"[" * 700)
@example(b"a: " + b"{a: " * 700)
def test_any_file_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    loads_or_says_why(str(path), [])


def test_every_recipe_of_the_repository_loads() -> None:
    assert config.recipes()
    assert all(load(name).run.recipe == name for name in config.recipes())


PRESETS = SOUND + "presets:\n  large:\n    model: {filters: 64}\n    train: {epochs: 3}\n  tiny:\n    model: {filters: 2}\n"


def test_a_preset_sets_what_it_states_and_the_command_line_has_the_last_word(recipe: Path) -> None:
    recipe.write_text(PRESETS)
    loaded = load(str(recipe), ["model.hidden=7", "model.filters=5", "preset=large"])
    assert (loaded.run.model.model_dump()["filters"], loaded.run.train.epochs, loaded.run.train.steps) == (5, 3, None)
    origins = {key: row["origin"] for key, row in loaded.settings().items()}
    assert (origins["train.epochs"], origins["model.filters"]) == ("preset large", "command line")
    assert load(str(recipe), ["preset=tiny"]).run.model.model_dump()["filters"] == 2
    assert load(str(recipe), []).run.train.epochs != 3


def test_an_unknown_preset_is_told_with_the_nearest(recipe: Path) -> None:
    recipe.write_text(PRESETS)
    assert only_problem(recipe, "preset=larg") == "preset: mine.yaml has no preset 'larg'; did you mean large?; it has: large, tiny"


def test_a_kept_config_is_the_run_it_came_from_with_overrides_laid_over():
    run = config.load("cnn", ["optim.lr=0.5", "data.splits={train: 0.6, validation: 0.2, test: 0.2}", "train.steps=7"]).run
    kept = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)
    assert config.trained_with(kept) == run
    changed = config.trained_with(kept, ["train.epochs=2", "storage=/elsewhere"])
    assert (changed.train.epochs, changed.train.steps, changed.storage) == (2, None, "/elsewhere")
    with pytest.raises(RecipeError, match=r"optim.lrr: no such setting; did you mean optim.lr\? \(config.yaml:"):
        config.trained_with(kept.replace("  lr:", "  lrr:"))


def test_settings_as_python_values_are_the_words_that_mean_them(tmp_path):
    given = {
        "optim.lr": 1e-5,
        "train": {"epochs": 5, "micro_batch": None},
        "data": {"source": tmp_path / "a b.csv", "columns": {"label": "3"}},
        "scale.workers": "1..4",
        "train.batch": np.int64(64),
        "train.compile": True,
        "promote.min": {"accuracy": 0.9},
    }
    loaded = config.load("cnn", config.words_of(given)).run
    assert (loaded.optim.lr, loaded.train.epochs, loaded.train.micro_batch, loaded.train.batch) == (1e-5, 5, None, 64)
    assert (loaded.data.source, loaded.data.columns) == (str(tmp_path / "a b.csv"), {"label": "3"})
    assert (loaded.scale.workers.written, loaded.train.compile, loaded.promote.min) == ("1..4", True, {"accuracy": 0.9})


def test_a_value_that_can_be_no_setting_is_told_by_its_key():
    with pytest.raises(RecipeError, match=r"optim\.lr: a object is no setting"):
        config.words_of({"optim.lr": object()})
