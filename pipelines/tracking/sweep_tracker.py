"""Send a sweep and its trials to MLflow, many runs below one, by a single thread.

A trial that ended is closed once MLflow has all of it, its figures included; until then it stays here, so an outage of the server costs
nothing but time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

from pipelines.run_record import RunFolder
from pipelines.run_states import About
from pipelines.tracking import provenance
from pipelines.tracking.client import NOTE, first_line, server
from pipelines.tracking.shipper import Tracker

_INTERVAL_SECONDS = 3.0
_VIEW = {
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsHiddenMode": "SHOW_ALL",  # its charts show ten runs otherwise
}


class SweepTracker(Tracker):
    """The tracker of a sweep, which ships the trials too. `tracked(number, run_id)` is called for each that is closed."""

    def __init__(self, uri: str, folder: RunFolder, root: Path, about: About, tracked: Callable[[int, str], None]) -> None:
        super().__init__(uri, folder, root, about)
        self._interval, self._tracked = _INTERVAL_SECONDS, tracked
        self._live: dict[int, Tracker] = {}
        self._ended: set[int] = set()
        self._description: Callable[[], str] | None = None

    def add_trial(self, number: int, trial: Tracker) -> None:
        self._live[number] = trial

    def end_trial(self, number: int, status: str, tags: Mapping[str, str]) -> None:
        """Keep the end of a trial, FINISHED, FAILED or KILLED, to be sent by the next `ship`."""
        self._live[number].end(status, tags)
        self._ended.add(number)

    def trial_run_id(self, number: int) -> str:
        """The trial's id in MLflow, once it is known."""
        return self._live[number].run_id if number in self._live else ""

    def describe(self, text: Callable[[], str]) -> None:
        """Set the sweep's description, Markdown; `text` is called when it can be sent."""
        self._description = text

    def abandon(self, status: str, tags: Mapping[str, str], *, patience_seconds: float) -> None:
        """Close all that is open as `status`, the sweep too, as far as MLflow can be reached in so long."""
        self.end(status, tags)
        for number in [number for number in self._live if number not in self._ended]:
            self.end_trial(number, status, tags)
        self.flush(patience_seconds=patience_seconds)
        self.last_word(patience_seconds=patience_seconds)

    def ship(self) -> bool:
        """Send what is new of the sweep and of each trial; False, with `trouble` set, if MLflow failed."""
        if not super().ship():
            return False
        assert self._client
        try:
            if describe := self._description:
                self._description = None
                self._client.set_tag(self.run_id, NOTE, provenance.redact(describe()))
            for number, trial in list(self._live.items()):
                ended = number in self._ended  # before what is left is sent
                if not trial.ship():
                    self.trouble = trial.trouble
                    return False
                if ended:
                    trial.send_page()
                    trial.send_ending()
                    self._tracked(number, trial.run_id)
                    del self._live[number]
                    self._ended.discard(number)
        except Exception as error:  # whatever a server, a network or a database may throw must not end the sweep
            self.trouble = first_line(error)
            return False
        return True

    def comparison(self, order_by: str, *, ascending: bool, columns: Sequence[str]) -> str:
        """The page of all trials, the best first; once the run is open, with `columns` (metrics.`a`, params.`b`) shown."""
        page, below = f"{server(self.uri)}/#/experiments/{self.experiment_id}/runs", f'tags.`mlflow.parentRunId` = "{self.run_id}"'
        if self._client and columns:
            with contextlib.suppress(Exception):  # a view that is kept with the experiment: not documented, and but a convenience (3.17)
                view = _VIEW | {"searchFilter": below, "orderByKey": order_by, "orderByAsc": ascending, "selectedColumns": list(columns)}
                self._client.set_experiment_tag(self.experiment_id, f"mlflow.sharedViewState.{self.run_id}", json.dumps(view))
                return f"{page}?workflowType=machine_learning&viewStateShareKey={self.run_id}"
        # nesting is off only where the list is sorted, and then children are shown (MLflow 3.17)
        query = {"workflowType": "machine_learning", "searchFilter": below, "orderByKey": order_by, "orderByAsc": str(ascending).lower()}
        return f"{page}?{urlencode(query)}"
