"""The notebook of the first run works, cell by cell, in a real kernel."""

from __future__ import annotations

import os

import pytest
from nbclient import NotebookClient
from nbformat import read

from tests.cli import ROOT

NOTEBOOK = ROOT / "workloads" / "examples" / "first_run.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The notebook's cells of code after they were run, in an empty folder."""
    notebook = read(NOTEBOOK, as_version=4)
    place = tmp_path_factory.mktemp("notebook")
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads that wait for a core spin
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(place / "ipython")} | one
    NotebookClient(notebook, timeout=110, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute(env=environment)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> str:
    """All that stands below a cell, as plain text."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_the_notebook_is_kept_without_outputs():
    assert not [cell for cell in read(NOTEBOOK, as_version=4).cells if cell.get("outputs")]


@pytest.mark.long
def test_every_cell_runs_and_says_what_it_should(cells):
    first, again, network, pictures, compared, wine, interval, rows, mistake = (shown(cell) for cell in cells)
    assert "TrainResult(run_id=" in first
    assert again.endswith("True")
    assert network.endswith("38602")
    assert "10 rows" in pictures or len(pictures.splitlines()) >= 10
    assert "optim.lr" in compared
    assert wine.rstrip().endswith(")")
    assert interval.rstrip().endswith("]")
    assert len(rows.splitlines()) >= 6
    assert mistake == "optim.lrr: no such setting; did you mean optim.lr? (command line)\n"


@pytest.mark.long
def test_a_cell_that_trains_shows_a_bar_below_it_that_is_replaced_in_its_place(cells):
    bars = [output for output in cells[0].outputs if output.output_type == "display_data" and "step " in output.data["text/plain"]]
    assert len(bars) == 1
    assert "samples/s" in bars[0].data["text/plain"]


@pytest.mark.long
def test_no_cell_shows_what_ray_or_mlflow_print(cells):
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
