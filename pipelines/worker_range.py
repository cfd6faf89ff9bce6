"""How many workers a run may have: a number, or a span such as 1..4 that follows what the cluster has."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

_WRITTEN = re.compile(r"(\d{1,6})(?:\.\.(\d{1,6}))?")


class Workers(int):
    """The most workers there may be, as an int: what must not change with their number is worked out for these. `least` may do."""

    least: int

    def __new__(cls, most: int, least: int | None = None) -> Workers:
        made = super().__new__(cls, most)
        made.least = most if least is None else least
        return made

    @property
    def elastic(self) -> bool:
        """Whether their number may change."""
        return self.least < self

    @property
    def written(self) -> int | str:
        """As a setting, a number or a span."""
        return str(self) if self.elastic else int(self)

    def __str__(self) -> str:
        return f"{self.least}..{int(self)}" if self.elastic else f"{int(self)}"

    __repr__ = __str__


def workers(written: Any) -> Workers:
    """What a setting says. Raises ValueError unless it is a number or a span."""
    if isinstance(written, Workers):
        return written
    found = None if isinstance(written, (bool, float)) else _WRITTEN.fullmatch(str(written))
    if not found:
        raise ValueError(f"{written!r} is neither a number of workers, such as 4, nor a span, such as 1..4")
    least, most = int(found[1]), int(found[2] or found[1])
    if found[2] and not 1 <= least < most:
        raise ValueError(f"{written!r}: a span goes from at least 1 worker up to more, such as 1..4")
    return Workers(most, least)


Span = Annotated[Workers, PlainValidator(workers), PlainSerializer(lambda span: span.written)]
