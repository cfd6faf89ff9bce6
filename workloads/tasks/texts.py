"""Columns of texts: of raw rows, and of what a registered model is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..base import DataError


def texts_in(column: np.ndarray, name: str = "text") -> list[str]:
    """The texts of column `name`. Raises DataError where one is missing, or is no text."""
    texts = column.tolist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            missing = text is None or (isinstance(text, float) and np.isnan(text))
            raise DataError(
                f"column {name}: {'is missing' if missing else f'{text!r} is not a text'}; give a string, even an empty one", row
            )
        if not text.isascii():
            _check_whole(text, row, name)
    return texts


def text_column(given: Any, name: str = "text") -> np.ndarray:
    """Column `name` of what a registered model was given: objects (N,), None where a text is missing.

    A DataFrame, or what makes one (a list of dicts, a dict of lists); or texts alone, in a list or an array. Raises DataError.
    """
    import pandas as pd

    try:
        if isinstance(given, str):
            raise ValueError("one string is a list of letters")
        table = pd.DataFrame(given).rename(columns=str)
    except (TypeError, ValueError) as error:
        raise DataError(f"a table with a column {name}, or a list of texts, was expected, not {type(given).__name__}: {error}") from None
    alone = not isinstance(given, (pd.DataFrame, Mapping)) and list(table.columns) == ["0"]
    names = list(table.columns) if alone else [each for each in table.columns if each == name]
    if len(names) != 1:
        found = "was given more than once" if names else f"is not there; columns given: {', '.join(table.columns) or 'none'}"
        raise DataError(f"column {name}: {found}")
    return table[names[0]].to_numpy(object, na_value=None)


def _check_whole(text: str, row: int, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"column {name}: holds half a character, {text[error.start]!r}, at place {error.start}", row) from None
