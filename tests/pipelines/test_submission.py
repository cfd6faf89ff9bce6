"""What a command is as a job: its id, its words, and what is said before anything is sent."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from cluster.jobs import package_of
from pipelines.errors import RecipeError
from pipelines.submission import address_of, check_sent, submission_of
from tests.cli import ROOT, raylway

STORED = "storage=/shared/runs"


def made(*words, verb="train", name=None, folder=ROOT, environment=(), **given):
    """The submission of `raylway VERB words…`; `given` is what the command line makes of them beside recipe and overrides."""
    parsed = {"recipe": words[0], "overrides": [word for word in words[1:] if "=" in word]} if verb in ("train", "sweep", "prepare") else {}
    parsed |= {"overrides": [word for word in words if "=" in word]} | given
    return submission_of(verb, words, parsed, folder=folder, name=name, environment=dict(environment))


def problems(*words, **given) -> str:
    with pytest.raises(RecipeError) as refused:
        made(*words, **given)
    return "\n".join(refused.value.problems)


@pytest.fixture
def clone(tmp_path):
    """A folder that holds the program."""
    for room in ("pipelines", "workloads", "cluster"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_same_training_has_the_same_id_wherever_it_runs_and_however_it_is_shown():
    first = made("cnn", STORED)
    assert first.id == made("cnn", STORED, "scale.workers=4", "--json").id == made("cnn", STORED, "train.log_every=5").id
    assert first.id.startswith("train-cnn-")
    assert first.id != made("cnn", STORED, "optim.lr=0.5").id
    assert first.id != made("cnn", "storage=/elsewhere").id
    assert first.id != made("gpt", STORED).id
    assert first.id != made("cnn", STORED, "--again", again=True).id


def test_a_named_run_is_a_job_of_that_name_and_other_settings_another_meaning():
    first = made("cnn", STORED, "name=mine")
    assert first.id == "mine"
    assert first.meaning == made("cnn", STORED, "name=mine", "scale.workers=2").meaning
    assert first.meaning != made("cnn", STORED, "name=mine", "optim.lr=0.5").meaning
    assert first.meaning != made("cnn", STORED, "name=mine", verb="sweep").meaning
    assert made("cnn", STORED, "name=mine", name="other").id == "other"


def test_only_what_makes_a_run_is_there_for_good():
    assert made("cnn", STORED).lasting
    assert made("cnn", STORED, verb="sweep").lasting
    assert not made("cnn", STORED, verb="prepare").lasting
    assert not made("cnn", STORED, verb="promote", model="cnn").lasting


def test_what_has_no_recipe_is_named_by_its_words():
    words = ("models:/cnn@champion", "/in.parquet", "/out.parquet", STORED)
    first = made(*words, verb="predict", model=words[0], input_=words[1], output=words[2])
    assert first.id.startswith("predict-models-cnn-champion-")
    assert first.id == made(*words, "--json", verb="predict", model=words[0], input_=words[1], output=words[2]).id
    assert first.id != made("models:/cnn@champion", STORED, verb="evaluate", model="models:/cnn@champion").id


def test_a_shell_gives_the_words_back_as_they_were_given():
    nasty = ["$(touch x)", "`touch x`", "a; touch x", "two\nlines", "'single'", '"double"', "*", "~", "&& touch x", "#", "", "a\\b"]
    words = ["cnn", STORED, *(f"data.columns.image={each}" for each in nasty)]
    command = made(*words).command
    assert shlex.split(command) == ["python", "-m", "pipelines", "train", *words]
    printed = subprocess.run(
        ["sh", "-c", command.replace("python -m pipelines", "printf '%s\\0'", 1)], capture_output=True, text=True, check=True
    )
    assert printed.stdout.split("\0")[:-1] == ["train", *words]


@pytest.mark.parametrize(
    ("words", "given", "sentence"),
    [
        (
            ("cnn",),
            {},
            "storage=./runs would lie in the job's own folder on the head node, and go with it; give a folder that every node reaches",
        ),
        (("cnn", "storage=~/runs"), {}, "storage=~/runs would lie"),
        (("cnn", "storage=s3://bucket/runs"), {}, "storage=s3://bucket/runs would lie"),
        (("cnn", STORED, "data.prepared=prepared"), {}, "data.prepared=prepared would lie"),
        (("cnn", STORED, "track.uri=sqlite:///mlflow.db"), {}, "track.uri=sqlite:///mlflow.db would lie"),
        (
            ("cnn", STORED),
            {"environment": {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}},
            "MLFLOW_TRACKING_URI=sqlite:///mlflow.db would lie",
        ),
        (("models:/cnn/1",), {"verb": "evaluate"}, "storage=./runs would lie"),
        (("m", "/in", "out.csv", STORED), {"verb": "predict", "input_": "/in", "output": "out.csv"}, "OUTPUT out.csv would lie"),
        (("cnn", STORED), {"name": "../x"}, "--name: '../x' is not a name"),
        (("cnn", STORED), {"name": "a b"}, "--name: 'a b' is not a name"),
    ],
)
def test_what_would_vanish_or_is_no_name_is_refused(words, given, sentence):
    assert sentence in problems(*words, **given)


def test_what_every_node_can_reach_is_not_refused():
    words = ("cnn", STORED, "data.prepared=s3://bucket/prepared", "track.uri=sqlite:////shared/mlflow.db")
    sent = made(*words, environment={"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_TRACKING_PASSWORD": "hunter2"})
    assert sent.environment == (("MLFLOW_TRACKING_URI", "http://mlflow:5000"),)


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (("cnn", STORED, "track.uri=http://me:hunter2@mlflow:5000"), {}),
        (("cnn", STORED), {"MLFLOW_TRACKING_URI": "http://me:hunter2@mlflow:5000"}),
        (("cnn", STORED, "data.source=s3://bucket/x.csv?secret_key=hunter2"), {}),
    ],
)
def test_a_password_is_refused_and_not_repeated(words, environment):
    said = problems(*words, environment=environment)
    assert "holds what looks like a password; a job's command and environment can be read by all who see the dashboard" in said
    assert "hunter2" not in said


def test_a_password_in_a_recipe_is_refused(clone):
    (clone / "mine.yaml").write_text((ROOT / "workloads/recipes/cnn.yaml").read_text() + "track: {uri: 'http://me:hunter2@mlflow:5000'}\n")
    said = problems("mine.yaml", STORED, folder=clone)
    assert "the recipe holds what looks like a password" in said
    assert "MLFLOW_TRACKING_USERNAME" in said
    assert "hunter2" not in said


def test_the_folder_must_hold_the_program(tmp_path):
    assert f"--working-dir {tmp_path}: has no pipelines/__main__.py" in problems("cnn", STORED, folder=tmp_path)


def test_files_that_a_command_names_must_go_up(clone):
    (clone / ".gitignore").write_text("*.csv\n")
    (clone / "kept.txt").write_text("x")
    (clone / "left.csv").write_text("x")
    (clone.parent / "outside.txt").write_text("x")

    def checked(source: str) -> None:
        submission = made("gpt", STORED, f"data.source={source}", folder=clone)
        check_sent(submission, package_of(clone).files)

    for source in ("kept.txt", "*.txt", "/shared/x.csv", "s3://bucket/x.csv", "hf://name", "python_manual"):
        checked(source)
    for source, sentence in [
        ("left.csv", "data.source left.csv: left.csv is left out of what goes up, by .gitignore, .rayignore or --exclude"),
        ("../outside.txt", "data.source ../outside.txt: lies outside"),
    ]:
        with pytest.raises(RecipeError) as refused:
            checked(source)
        assert sentence in str(refused.value)
    with pytest.raises(Exception, match=r"nowhere\.csv: there is no such file"):
        checked("nowhere.csv")


def test_a_program_that_is_left_out_is_missed(clone):
    with pytest.raises(RecipeError, match=r"the program pipelines/__main__.py: pipelines/__main__.py is left out"):
        check_sent(made("cnn", STORED, folder=clone), package_of(clone, ["pipelines/"]).files)


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        ("http://head:8265/", {"RAY_ADDRESS": "http://other:1"}, "http://head:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "https://head", "RAY_ADDRESS": "x:6379"}, "https://head"),
        (None, {"RAY_ADDRESS": "http://head:8265"}, "http://head:8265"),
    ],
)
def test_the_address_is_that_given_else_that_of_the_environment(given, environment, address):
    assert address_of(given, environment) == address


@pytest.mark.parametrize(
    ("given", "environment", "sentence"),
    [
        (None, {}, "to which cluster? Give --address http://HEAD:8265"),
        (
            None,
            {"RAY_ADDRESS": "head:6379"},
            "RAY_ADDRESS=head:6379: jobs are taken by the dashboard of the cluster's head; give --address http://HEAD:8265",
        ),
        ("head:8265", {}, "--address=head:8265: jobs are taken"),
    ],
)
def test_an_address_that_takes_no_jobs_says_what_to_give(given, environment, sentence):
    with pytest.raises(RecipeError) as refused:
        address_of(given, environment)
    assert sentence in str(refused.value)


def test_the_command_line_checks_the_command_before_anything_is_asked(tmp_path):
    nobody = ["submit", "--address", "http://127.0.0.1:9", "--working-dir", str(ROOT)]
    for words, code, sentence in [
        (["submit"], 2, "give a command behind --"),
        ([*nobody, "--list", "--", "train", "cnn"], 2, "or one of --list, --status ID and --stop ID"),
        ([*nobody, "--", "trian", "cnn"], 2, "No such command 'trian'"),
        ([*nobody, "--", "train", "cnn", "--gain"], 2, "No such option"),
        ([*nobody, "--", "ui"], 2, "submit: ui is no job; there are: train, sweep"),
        ([*nobody, "--", "train", "cnn", "optim.lrr=1"], 2, "optim.lrr: no such setting; did you mean optim.lr?"),
        ([*nobody, "train", "cnn", STORED, "--json"], 12, "http://127.0.0.1:9: no Ray dashboard answers there (Connection refused)"),
    ]:
        exit_code, _, err = raylway(*words, cwd=tmp_path)
        assert (exit_code, "Traceback" in err) == (code, False), err
        assert sentence in err
