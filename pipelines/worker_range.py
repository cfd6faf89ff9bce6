"""How many workers a run may have: a number, or a range such as 1..4 that follows what the cluster has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

_WRITTEN = re.compile(r"(\d{1,6})(?:\.\.(\d{1,6}))?")


@dataclass(frozen=True)
class WorkerRange:
    """From `least` to `most` workers; what must not change with their number is worked out for the most. No workers (0): this process."""

    least: int
    most: int

    def __bool__(self) -> bool:
        return self.most > 0

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else f"{self.most}"

    @property
    def elastic(self) -> bool:
        """Whether their number may change."""
        return self.least < self.most

    @property
    def written(self) -> int | str:
        """As a setting, a number or a range."""
        return str(self) if self.elastic else self.most

    @classmethod
    def read(cls, written: Any) -> WorkerRange:
        """The range that a setting says. Raises ValueError unless it is a number or a range."""
        if isinstance(written, WorkerRange):
            return written
        match = None if isinstance(written, (bool, float)) else _WRITTEN.fullmatch(str(written))
        if not match:
            raise ValueError(f"{written!r} is neither a number of workers, such as 4, nor a range, such as 1..4")
        least, most = int(match[1]), int(match[2] or match[1])
        if match[2] and not 1 <= least < most:
            raise ValueError(f"{written!r}: a range goes from at least 1 worker up to more, such as 1..4")
        return cls(least, most)


Workers = Annotated[WorkerRange, PlainValidator(WorkerRange.read), PlainSerializer(lambda workers: workers.written)]
"""A setting that is written `4` or `1..4`."""
