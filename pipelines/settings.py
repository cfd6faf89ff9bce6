"""The groups of settings: data, optim, train, scale, track, sweep, promote. A field is its own documentation.

Type, bounds, default, and one sentence with the unit, which is also the help, the description in MLflow, and the check of a sweep's space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from cluster.capacity import WorkerRange
from pipelines.errors import shown

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def _safe_name(name: str | None) -> str | None:
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: lower-case letters, digits, '.', '_' and '-', at most 63, no path")
    return name


Name = Annotated[str, AfterValidator(_safe_name)]
Workers = Annotated[WorkerRange, PlainValidator(WorkerRange.read), PlainSerializer(lambda workers: workers.written)]


def _dotted(tree: Any, prefix: str = "") -> Any:
    """A tree of settings as one level of dotted keys: `optim: {lr: …}` and `optim.lr: …` are the same."""
    if not isinstance(tree, Mapping):
        return tree
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False)


class Splits(Settings):
    """Shares that sum to one; or, for data that have an order, whole numbers of rows, of which the last need not be all there are."""

    train: float = Field(0.8, gt=0)
    """Share of rows trained on."""
    validation: float = Field(0.1, gt=0)
    """Share of rows looked at while training."""
    test: float = Field(0.1, gt=0)
    """Share of rows looked at once, at the end."""
    column: str | None = None
    """Column that says which split a row is of: train, validation (valid, val, dev) or test."""
    key: str | None = None
    """Column whose equal values share a split, such as a patient's number; the split is drawn by a hash of the value."""
    stratify: bool | None = None
    """Draw each class by itself, so that every split has some of it; default: classes of fewer than 50 rows."""

    @model_validator(mode="after")
    def _agree(self) -> Splits:
        if not self.are_rows and abs(sum(self.sizes) - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1 (or all be whole numbers of rows), not {sum(self.sizes):g}")
        if sum([self.column is not None, self.key is not None, self.stratify is True]) > 1:
            raise ValueError("column, key and stratify=true are three ways to cut; state one of them")
        if self.are_rows and (self.column or self.key or self.stratify):
            raise ValueError("numbers of rows cut in order, so column, key and stratify do not go with them")
        return self

    @property
    def sizes(self) -> tuple[float, float, float]:
        return self.train, self.validation, self.test

    @property
    def are_rows(self) -> bool:
        """Whether these are numbers of rows and not shares."""
        return all(size >= 1 and size == int(size) for size in self.sizes)


class Data(Settings):
    source: str | None = None
    """An embedded data set (digits, breast_cancer, diabetes, seasons, python_lines, python_manual), a file, a folder, a glob or a URI of
    files (CSV, TSV, JSON lines, Parquet, Arrow, npy, npz, text, IDX, pictures in a folder a class), or hf://name[:config]."""
    train: str | None = None
    """Where training rows are, if splits are given as files of their own; what is not given of the two others is cut from it."""
    validation: str | None = None
    """Where validation rows are."""
    test: str | None = None
    """Where test rows are."""
    columns: dict[str, str] = {}
    """The source's names of the columns that the task asks for: data.columns.text=review."""
    splits: Splits = Splits()
    """How the rows are divided."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the splits."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do about a row that cannot be used: stop, or leave it out and count it."""
    max_bad_fraction: float = Field(0.01, ge=0, lt=1)
    """Largest share of rows that may be left out."""
    mode: Literal["cached", "stream"] = "cached"
    """cached: prepared once and memory-mapped, in an exact order; stream: training rows are read anew each epoch, in no promised order."""
    prepared: str | None = None
    """Where prepared data are kept, a folder or a URI that every node reaches; default: datasets/ in the storage."""
    cache: str | None = None
    """Folder of each node for copies of prepared data that lie elsewhere; default: ~/.cache/raylway."""

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if (self.source is None) == (self.train is None):
            raise ValueError("state either source, or train (with validation and test, or without)")
        if self.source is not None and (self.validation or self.test):
            raise ValueError("validation and test go with train, not with source")
        if self.train is not None and (self.splits.column or self.splits.key):
            raise ValueError("splits.column and splits.key divide one source; with train the files do")
        return self

    @property
    def name(self) -> str:
        """What the data are called in sentences."""
        return shown(self.source or self.train or "")

    @property
    def given(self) -> dict[str, str]:
        """The splits that are given as sources of their own, training first."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: text for split, text in named.items() if text}


class Optim(Settings):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimizer, as in torch.optim."""
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay (adamw) or L2 penalty (adam, sgd)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls to zero after the warm-up."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""
    clip: float | None = Field(None, gt=0)
    """Largest allowed norm of the whole gradient."""


class Train(Settings):
    epochs: int | None = Field(None, gt=0)
    """Passes over the training rows; either this or steps."""
    steps: int | None = Field(None, gt=0)
    """Optimizer steps; either this or epochs."""
    batch: int = Field(128, gt=0)
    """Rows of one optimizer step, over all workers (the global batch)."""
    micro_batch: int | None = Field(None, gt=0)
    """Rows of one forward pass; default: the batch divided by the workers."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the weights, of the order of rows and of dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass (bf16: autocast; weights stay fp32)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    log_every: int = Field(10, gt=0)
    """Steps between two points of the training curves."""
    eval_every: int | None = Field(None, gt=0)
    """Steps between two looks at the validation rows; default: an epoch."""
    checkpoint_every: int = Field(100, gt=0)
    """Steps between two checkpoints."""
    keep: int = Field(2, ge=2)
    """Checkpoints kept, the newest ones; two at least, so that a torn one has another behind it."""

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("state either train.epochs or train.steps")
        if self.micro_batch and self.micro_batch > self.batch:
            raise ValueError(f"train.micro_batch={self.micro_batch} is larger than train.batch={self.batch}")
        return self


class Scale(Settings):
    workers: Workers = WorkerRange(1, 1)
    """Training processes; 0 trains in this process, without Ray; 1..4 takes as many as the cluster has room for, and follows it."""
    cpus: int | None = Field(None, gt=0)
    """CPUs of one worker; default: an equal share of a node's."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of one worker, or the share of one, such as 0.25; default: one where there are any."""
    threads: int | None = Field(None, gt=0)
    """Threads torch computes with in one worker; default: its CPUs."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each worker holds the whole network; fsdp: its part of weights, gradients and optimizer state, where the whole is too large."""
    retries: int = Field(3, ge=0)
    """How often a lost worker is replaced before the run fails."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Scale:
        if self.gpus and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"scale.gpus={self.gpus:g}: a worker has a share of one GPU, or whole ones")
        return self


class Track(Settings):
    uri: str | None = None
    """MLflow tracking server or database; default: MLFLOW_TRACKING_URI, else a database in the storage folder."""
    experiment: Name | None = None
    """MLflow experiment; default: the recipe's name."""
    register_: Name | Literal[False] | None = Field(None, alias="register")
    """Name of the registered model, or false; default: the recipe's name."""

    model_config = ConfigDict(serialize_by_alias=True)
    wait_seconds: float = Field(60, ge=0)
    """How long to wait for MLflow at the end, where it cannot be reached; `raylway track --sync` sends later what is missing then."""


class Sweep(Settings):
    """How `raylway sweep` searches; `train` passes it over."""

    space: Annotated[dict[str, str], BeforeValidator(_dotted)] = {}
    """Settings to search and where: optim.lr: loguniform(1e-4, 1e-1); also uniform, quniform, randint, choice, grid, as in Ray Tune."""
    trials: int | None = Field(None, gt=0)
    """Trials in all; default: 16, or all there are on a grid."""
    search: Literal["tpe", "random", "grid"] | None = None
    """How settings are suggested; default: grid if the space is nothing else, else tpe (Bergstra et al., 2011)."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    """What ends a poor trial early, or gives it the weights of a good one (pbt: Jaderberg et al., 2017)."""
    grace: int = Field(1, gt=0)
    """Looks at the validation rows before a trial may be ended early, and between two changes of pbt."""
    metric: str | None = None
    """What trials are ranked by, a metric of the validation rows such as val/loss; default: the task's headline."""
    mode: Literal["max", "min"] | None = None
    """Which direction is better; default: the headline's, or min for val/loss."""
    concurrent: int | None = Field(None, gt=0)
    """Most trials at once; default: as many as there is room for."""
    keep: int = Field(3, gt=0)
    """The best trials, which keep their checkpoints."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of what is suggested."""
    confirm: str | None = Field(None, pattern=r"^[1-9]\d?x[1-9]\d?$")
    """Train the best anew with other seeds and judge them on the test rows: 3x5 is the best three, five seeds each."""


class Promote(Settings):
    """What a model must hold to become champion, on its own test rows; `raylway promote` judges, and `train` the first of a name."""

    min: dict[str, float] = {}
    """Metrics and the least each must be: accuracy: 0.97, or of one class: class/malignant/recall: 0.95."""
    max: dict[str, float] = {}
    """Metrics of which less is better, and the most each may be: mse: 0.05."""
    must_beat: Literal["champion", False] = "champion"
    """champion: be better than it on the same rows, beyond chance; false: the floors are enough."""
    metric: str | None = None
    """What the two are compared by; default: the task's headline."""
    margin: float = Field(0, ge=0)
    """How much worse than the champion it may be; above 0, not being worse by so much is enough, and being better is not asked."""
    slices: dict[str, dict[str, float]] = {}
    """Columns of the source and what the rows of each of their values must hold, as min or max do: ward: {accuracy: 0.9}."""
    min_rows: int = Field(30, gt=0)
    """Rows that a value needs to be held against `slices`; of fewer, a score says nothing."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Most milliseconds that an answer to one raw row may take, the median of 30 on this machine."""

    @property
    def has_floors(self) -> bool:
        """Whether a model without a rival has anything to hold."""
        return bool(self.min or self.max or self.slices or self.max_latency_ms)
