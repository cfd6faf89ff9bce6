"""Which splitting a recipe asks for: drawn, by a key, by a column, in order, or given as sources of their own."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.data.source import Source, Together
from pipelines.data.splits import RARE_ROWS, SPLITS, ByColumn, ByKey, Consecutive, Drawn, Given, Splitting, draw_by_class
from pipelines.errors import RecipeError
from pipelines.run_settings import Run
from workloads.base import DataError


def splitting_of(run: Run, source: Source) -> Splitting:
    """The splitting that the settings ask for. Raises DataError, RecipeError where they cannot be had."""
    splits, seed = run.data.splits, run.data.seed
    if isinstance(source, Together):
        return _given(run, source)
    if splits.column:
        return ByColumn(splits.column)
    if run.model.ordered:
        if splits.key or splits.stratify:
            raise RecipeError("data.splits.key and stratify draw rows; rows that have an order are cut into consecutive parts")
        return _consecutive(run, source.rows())
    if splits.are_rows:
        raise RecipeError("data.splits: numbers of rows are for data that have an order; rows without one are drawn by shares")
    return ByKey(splits.key, splits.sizes, seed) if splits.key else Drawn(splits.sizes, seed)


def settled(run: Run, splitting: Splitting, source: Source, columns: Sequence[str]) -> Splitting:
    """The splitting, once the labels are known: classes that are too rare to be left to chance are drawn by themselves."""
    label = run.model.label_column
    drawn = splitting.cut if isinstance(splitting, Given) else splitting
    if not isinstance(drawn, Drawn) or run.data.splits.stratify is False or not label or label not in columns:
        return splitting
    rows = splitting.sizes[0] if isinstance(splitting, Given) else source.rows()
    labels = (raw[label] for raw in source.read(0, rows, [label]))
    by_class = draw_by_class(labels, drawn, rarer_than=None if run.data.splits.stratify else RARE_ROWS)
    return Given(splitting.sizes, by_class) if isinstance(splitting, Given) else by_class


def _consecutive(run: Run, rows: int) -> Consecutive:
    splits = run.data.splits
    if not splits.are_rows:
        return Consecutive.by_shares(rows, splits.sizes, run.model.context)
    if sum(splits.sizes) > rows:
        raise DataError(f"data.splits asks for {sum(splits.sizes):,.0f} rows, but {run.data.name} has {rows:,}")
    return Consecutive((int(splits.train), int(splits.validation), int(splits.test)), run.model.context)


def _given(run: Run, source: Together) -> Given:
    """Splits given as sources; what is missing of them is cut from the training rows, in the proportion of its share to theirs."""
    sizes = dict(zip(source.names, source.sizes, strict=True))
    shares = [0.0 if split in sizes and split != "train" else share for split, share in zip(SPLITS, run.data.splits.sizes, strict=True)]
    first, second, third = (share / sum(shares) for share in shares)
    by_shares = (first, second, third)
    ordered = run.model.ordered
    inner = Consecutive.by_shares(sizes["train"], by_shares, run.model.context) if ordered else Drawn(by_shares, run.data.seed)
    return Given((sizes["train"], sizes.get("validation", 0), sizes.get("test", 0)), inner)
