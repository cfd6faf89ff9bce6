"""A registered model behind HTTP, by Ray Serve: many requests are answered together, replicas are looked after and can be added.

    pip install 'ray[serve]' --constraint constraints.txt
    MLFLOW_TRACKING_URI=sqlite:////path/to/runs/mlflow.db python infra/serve/app.py models:/cnn@champion --replicas 2
    curl -s localhost:8000/invocations -H 'Content-Type: application/json' -d '{"inputs": [[[0, 5, …], …]]}'

On a cluster that runs: `serve run --app-dir infra/serve app:application model=models:/cnn@champion replicas=2`. It asks and answers as
`mlflow models serve` does (POST /invocations, GET /ping), and loads the model by mlflow.pyfunc, so it needs nothing of this repository.
An alias is looked up when a replica starts: restart them to serve what was promoted since.
"""

# no `from __future__ import annotations` here: FastAPI could not read them in what Ray has pickled from a script

import argparse
import asyncio
import io
import itertools
from typing import Any

import pandas as pd
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

web = FastAPI(title="Raylway")
_HEALTH_SECONDS = 10.0


class Settings(BaseModel):
    """What is served, and how."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """models:/name@alias or models:/name/3, in the registry that MLFLOW_TRACKING_URI names."""
    replicas: int = Field(1, gt=0)
    """Processes that each hold the model."""
    cpus: float = Field(1, gt=0)
    """CPUs of a replica, and threads that torch computes with."""
    gpus: float = Field(0, ge=0)
    """GPUs of a replica."""
    batch: int = Field(32, gt=0)
    """Most requests answered together."""
    wait_seconds: float = Field(0.01, ge=0)
    """How long the first request of a batch waits for others."""


@serve.deployment(health_check_period_s=_HEALTH_SECONDS, health_check_timeout_s=3 * _HEALTH_SECONDS)
@serve.ingress(web)
class Deployed:
    """One replica."""

    def __init__(self, settings: Settings) -> None:
        import mlflow.pyfunc
        import torch

        torch.set_num_threads(max(1, int(settings.cpus)))
        self._name = settings.model
        self._model = mlflow.pyfunc.load_model(settings.model)
        self._example = self._model.input_example[:1]
        self._together.set_max_batch_size(settings.batch)
        self._together.set_batch_wait_timeout_s(settings.wait_seconds)
        self.check_health()

    @web.post("/invocations")
    async def invocations(self, request: Request) -> Response:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import scoring_server

        try:
            body = (await request.body()).decode()
            given = scoring_server._parse_json_data(body, self._model.metadata, self._model.metadata.get_input_schema()).data
            answers = await self._together(pd.DataFrame(given) if isinstance(given, dict) else given)
            if isinstance(answers, Exception):
                raise answers
        except (MlflowException, ValueError, TypeError) as error:
            return Response(pd.Series({"error": str(error)}).to_json(), 400, media_type="application/json")
        written = io.StringIO()
        scoring_server.predictions_to_json(answers, written)
        return Response(written.getvalue(), media_type="application/json")

    @web.get("/ping")
    async def ping(self) -> dict[str, Any]:
        """Which model answers, and by what it says of its own example that it does."""
        await asyncio.to_thread(self.check_health)
        return {"model": self._name, "model_id": self._model.metadata.model_id}

    def check_health(self) -> None:
        """Raises where the model does not answer: Ray Serve then starts another replica."""
        self._model.predict(self._example)

    @serve.batch
    async def _together(self, given: list[Any]) -> list[Any]:
        """The answer to each request, by one call of the model; where they do not go together, or one is wrong, each by itself."""
        return await asyncio.to_thread(self._answers, given)

    def _answers(self, given: list[Any]) -> list[Any]:
        try:
            joined = _joined(given)
            answers = self._model.predict(joined)
        except Exception:
            return [self._alone(each) for each in given]
        ends = [0]
        for each in given:
            ends.append(ends[-1] + len(each))
        return [answers.iloc[start:end].reset_index(drop=True) for start, end in itertools.pairwise(ends)]

    def _alone(self, given: Any) -> Any:
        try:
            return self._model.predict(given)
        except Exception as error:  # it is this request's own, and given back as such
            return error


def application(settings: Settings) -> serve.Application:
    """What `serve run` is given."""
    resources = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    return Deployed.options(num_replicas=settings.replicas, ray_actor_options=resources).bind(settings)


def _joined(given: list[Any]) -> Any:
    import numpy as np

    if len(given) == 1:
        return given[0]
    return pd.concat(given, ignore_index=True) if all(isinstance(each, pd.DataFrame) for each in given) else np.concatenate(given)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a registered model on a Ray of this machine, until it is stopped.")
    parser.add_argument("model", help="models:/name@alias")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    for name, field in Settings.model_fields.items():
        if name != "model":
            parser.add_argument(f"--{name.replace('_', '-')}", type=field.annotation, default=field.default)
    given = vars(parser.parse_args())
    serve.start(http_options={"host": given.pop("host"), "port": given.pop("port")})
    serve.run(application(Settings(**given)), blocking=True)


if __name__ == "__main__":
    main()
