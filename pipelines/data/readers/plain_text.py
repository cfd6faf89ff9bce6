"""Plain text: a row a line, its line end included; only a line feed ends a line, for anything else would change what is trained on."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.readers.parse_cache import LeftOut, Staged, line_blocks
from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # that of UTF-32-LE begins as that of UTF-16-LE


@dataclass(frozen=True)
class PlainText(Staged):
    """A UTF-8 text; column `text`. A line that is not UTF-8 is a bad row. A byte order mark belongs to the first line."""

    @property
    def _parser(self) -> str:
        return "text 1"

    def _parsed(self, left_out: LeftOut) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        row = begin = 0
        for block in line_blocks(self.file):
            if not row and block.startswith(_OTHER_MARKS):  # else all of its lines but the first might pass for UTF-8
                raise DataError(f"{self.file.name}: is UTF-16 or UTF-32, not UTF-8; convert it, as with iconv --to-code=utf-8")
            lines = _lines(block)
            try:
                block.decode()
            except UnicodeDecodeError:
                lines = _good(lines, row, begin, left_out)
            yield pa.record_batch({"text": lines.drop_null().view(pa.string())})
            row, begin = row + len(lines), begin + len(block)


def _lines(block: bytes) -> pa.Array:
    """The lines of a block as they lie in it, not yet known to be UTF-8."""
    import pyarrow as pa

    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    behind = [] if block.endswith(b"\n") else [len(block)]
    offsets = np.concatenate([[0], ends, behind]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(block)])


def _good(lines: pa.Array, row: int, begin: int, left_out: LeftOut) -> pa.Array:
    """`lines`, those that are not UTF-8 replaced by null; the first is row `row` of the file and lies at byte `begin`."""
    import pyarrow as pa

    found: list[bytes | None] = []
    for line in lines.to_pylist():
        try:
            line.decode()
            found.append(line)
        except UnicodeDecodeError as error:
            left_out.add(row + len(found), f"not UTF-8 at byte {begin + error.start:,} of the file")
            found.append(None)
        begin += len(line)
    return pa.array(found, pa.binary())
