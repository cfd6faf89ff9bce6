"""The groups of settings: data, optim, train, scale, track, sweep, promote. A field is its own documentation.

Type, bounds, default, and one sentence with the unit, which is also the help, the description in MLflow, and the check of a sweep's space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from cluster.capacity import WorkerRange
from pipelines.data.files import shown

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def _safe_name(name: str | None) -> str | None:
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: lower-case letters, digits, '.', '_' and '-', at most 63, no path")
    return name


Name = Annotated[str, AfterValidator(_safe_name)]
Workers = Annotated[WorkerRange, PlainValidator(WorkerRange.read), PlainSerializer(lambda workers: workers.written)]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level of dotted keys: `optim: {lr: …}` and `optim.lr: …` are the same."""
    level: dict[str, Any] = {}
    for key, value in tree.items():
        level |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return level


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False)


class Splits(Settings):
    """Shares of the rows, which sum to 1; or, for ordered data, whole numbers of rows, which need not be all of them."""

    train: float = Field(0.8, gt=0)
    """Share of rows for training."""
    validation: float = Field(0.1, gt=0)
    """Share of rows for evaluation during training."""
    test: float = Field(0.1, gt=0)
    """Share of rows for the test at the end."""
    column: str | None = None
    """Column that names the split of each row: train, validation (valid, val, dev) or test."""
    key: str | None = None
    """Column whose rows of equal value stay in one split, such as a patient's number; a hash of the value picks the split."""
    stratify: bool | None = None
    """Split each class by the same shares; default: only classes of fewer than 50 rows."""

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
        """True for numbers of rows, False for shares."""
        return all(size >= 1 and size == int(size) for size in self.sizes)


class Data(Settings):
    source: str | None = None
    """A built-in data set (digits, breast_cancer, diabetes, seasons, python_lines, python_manual), a file, a folder, a glob or a URI of
    files (CSV, TSV, JSON lines, Parquet, Arrow, npy, npz, text, IDX, pictures in a folder a class), or hf://name[:config]."""
    train: str | None = None
    """Source of the training rows, if each split has its own; a validation or test split without a source is cut from it."""
    validation: str | None = None
    """Source of the validation rows."""
    test: str | None = None
    """Source of the test rows."""
    columns: dict[str, str] = {}
    """Names, in the source, of the columns that the task reads: data.columns.text=review."""
    splits: Splits = Splits()
    """Division of the rows into training, validation and test."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the splits."""
    on_bad_row: Literal["error", "skip"] = "error"
    """On a row that cannot be used: stop with an error, or skip and count it."""
    max_bad_fraction: float = Field(0.01, ge=0, lt=1)
    """Largest share of rows that may be skipped."""
    mode: Literal["cached", "stream"] = "cached"
    """cached: prepared once and memory-mapped, in an exact order; stream: training rows are read each epoch, in an order that may vary."""
    prepared: str | None = None
    """Folder or URI for prepared data, reachable from every node; default: datasets/ in the storage."""
    cache: str | None = None
    """Folder on each node for copies of prepared data that are stored remotely; default: ~/.cache/raylway."""

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
        """The data's name in messages."""
        return shown(self.source or self.train or "")

    @property
    def given(self) -> dict[str, str]:
        """The splits with a source of their own, training first."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: text for split, text in named.items() if text}


class Optim(Settings):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimizer, as in torch.optim."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay (adamw) or L2 penalty (adam, sgd)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Decay of the learning rate to zero after the warm-up; constant: none."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up from zero."""
    clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient over all parameters; above it the gradient is scaled down. Default: no clipping."""


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
    """Arithmetic of the forward pass (bf16: autocast; weights stay fp32, and so does an LSTM on a CPU without AVX-512)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    log_every: int = Field(10, gt=0)
    """Steps between two logged points of the training curves."""
    eval_every: int | None = Field(None, gt=0)
    """Steps between two evaluations on the validation rows; default: an epoch."""
    checkpoint_every: int = Field(100, gt=0)
    """Steps between two checkpoints."""
    keep: int = Field(2, ge=2)
    """Newest checkpoints kept; at least two, so that a damaged one has a predecessor."""

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("state either train.epochs or train.steps")
        if self.micro_batch and self.micro_batch > self.batch:
            raise ValueError(f"train.micro_batch={self.micro_batch} is larger than train.batch={self.batch}")
        return self


class Scale(Settings):
    workers: Workers = WorkerRange(1, 1)
    """Training processes; 0 trains in this process, without Ray; 1..4 uses as many as fit on the cluster, and adapts to it."""
    cpus: int | None = Field(None, gt=0)
    """CPUs of one worker; default: an equal share of a node's."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of one worker, or the share of one, such as 0.25; default: one where there are any."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of torch in one worker; default: its CPUs."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each worker holds the whole network; fsdp: weights, gradients and optimizer state are sharded over the workers."""
    retries: int = Field(3, ge=0)
    """Times that a lost worker is replaced before the run fails."""

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
    """Seconds to wait at the end of a run for an unreachable MLflow; `raylway track --sync` sends the rest later."""


class Sweep(Settings):
    """The search of `raylway sweep`; `train` ignores it."""

    space: Annotated[dict[str, str], BeforeValidator(lambda space: flat(space) if isinstance(space, Mapping) else space)] = {}
    """Settings to search, such as optim.lr: loguniform(1e-4, 1e-1); also uniform, quniform, randint, choice and grid, as in Ray Tune."""
    trials: int | None = Field(None, gt=0)
    """Trials in total; default: 16, or the whole grid."""
    search: Literal["tpe", "random", "grid"] | None = None
    """Search algorithm; default: grid if every setting has a grid, else tpe (Bergstra et al., 2011)."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    """Scheduler that stops poor trials early, or gives them the weights of good ones (pbt: Jaderberg et al., 2017)."""
    grace: int = Field(1, gt=0)
    """Evaluations before a trial may be stopped early, and between two changes by pbt."""
    metric: str | None = None
    """Validation metric that ranks the trials, such as val/loss; default: the task's headline metric."""
    mode: Literal["max", "min"] | None = None
    """Direction that is better; default: the headline metric's, or min for val/loss."""
    concurrent: int | None = Field(None, gt=0)
    """Most trials at once; default: as many as fit."""
    keep: int = Field(3, gt=0)
    """Best trials whose checkpoints are kept."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the search algorithm."""
    confirm: str | None = Field(None, pattern=r"^[1-9]\d?x[1-9]\d?$")
    """Train the best trials again with other seeds and score them on the test rows: 3x5 is the best three, five seeds each."""


class Promote(Settings):
    """Rules for a model to become champion, checked on its test rows by `raylway promote`, and by `train` for the first model of a name."""

    min: dict[str, float] = {}
    """Metrics and their lower bounds: accuracy: 0.97, or of one class: class/malignant/recall: 0.95."""
    max: dict[str, float] = {}
    """Metrics of which less is better, and their upper bounds: mse: 0.05."""
    must_beat: Literal["champion", False] = "champion"
    """champion: significantly better than the champion on the same rows; false: the bounds are enough."""
    metric: str | None = None
    """Metric of the comparison with the champion; default: the task's headline metric."""
    margin: float = Field(0, ge=0)
    """Margin of the comparison, in units of the metric; above 0, being worse by less than that is enough."""
    slices: dict[str, dict[str, float]] = {}
    """Columns of the source and bounds for the rows of each of their values, as in min or max: ward: {accuracy: 0.9}."""
    min_rows: int = Field(30, gt=0)
    """Fewest rows of a value for the bounds of `slices` to apply: a score of fewer says little."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Largest latency of predicting one raw row, in milliseconds: the median of 30 on this machine."""

    @property
    def has_floors(self) -> bool:
        """True if there are rules for a model that has no champion to beat."""
        return bool(self.min or self.max or self.slices or self.max_latency_ms)
