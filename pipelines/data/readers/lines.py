"""Files of which a line is a row: JSON lines, parsed by pyarrow in blocks of whole lines, and plain text."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.data.files import File, first_line
from pipelines.data.readers import parse_cache
from pipelines.data.readers.parse_cache import BadRows, Parsed, partial_beside, writing_to
from pipelines.data.readers.planned import reading
from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # that of UTF-32-LE begins as that of UTF-16-LE
# Arrow files hold no more than 64 levels; pyarrow 25 reads ten thousand, and crashes at a hundred thousand.
_DEEPEST, _MANY_BRACKETS = 32, 5000


class PlainText(Parsed):
    """A UTF-8 text: column `text`, a row a line, its line end included. A line that is not UTF-8 is a bad row.

    Only a line feed ends a line, for anything else would change what is trained on. A byte order mark belongs to the first line.
    """

    parser = "text 1"

    def _parse(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        row = begin = 0
        for block in _blocks(self.file):
            if not row and block.startswith(_OTHER_MARKS):  # else all of its lines but the first might pass for UTF-8
                raise DataError(f"{self.file.name}: is UTF-16 or UTF-32, not UTF-8; convert it, as with iconv --to-code=utf-8")
            lines = list(io.BytesIO(block))
            try:
                block.decode()
                good = lines
            except UnicodeDecodeError:
                good = list(_decodable(lines, row, begin, bad))
            yield pa.record_batch({"text": pa.array(good, pa.binary()).view(pa.string())})
            row, begin = row + len(lines), begin + len(block)


def _decodable(lines: Sequence[bytes], row: int, begin: int, bad: BadRows) -> Iterator[bytes]:
    """The lines that are UTF-8; the first is row `row` of the file and lies at byte `begin`."""
    for number, line in enumerate(lines, row):
        try:
            line.decode()
            yield line
        except UnicodeDecodeError as error:
            bad.add(number, f"not UTF-8 at byte {begin + error.start:,} of the file")
        begin += len(line)


def _blocks(file: File) -> Iterator[bytes]:
    """The unpacked content in blocks of whole lines; only the last may lack its line end. Raises DataError, also if there is none."""
    empty, longest = True, parse_cache.LONGEST_ROW_BYTES
    with reading(file, "text"), file.stream() as opened:
        stream = io.BufferedReader(cast(io.RawIOBase, opened))
        while block := stream.read(parse_cache.BLOCK_BYTES):
            rest = stream.readline(longest)
            if len(rest) == longest:
                raise DataError(f"{file.name}: has a line of more than {longest:,} bytes")
            yield block + rest
            empty = False
    if empty:
        raise DataError(f"{file.name}: is empty")


class JsonLines(Parsed):
    """A row an object a line; empty lines are no rows. A key that a row lacks is a missing value there; NaN and Infinity are numbers.

    Integers become floats where the column has floats too; dates stay strings; objects and lists are kept. Bad rows are those that are no
    JSON object, have a key twice, are not UTF-8, or hold another kind of value in a column than the rows before.

    Lines are parsed twice: to find the bad ones and the types of the columns, which pyarrow settles by its first block; then with these.
    """

    parser = "json lines 1"

    def _parse(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        with partial_beside(self.scratch / ".parsed" / "good lines") as partial:
            schema, sizes = self._good_lines(partial, bad)
            if not schema.names:
                raise DataError(f"{self.file.name}: holds no rows that can be read")
            yield pa.RecordBatch.from_pylist([], schema=schema)
            with partial.open("rb") as lines:
                for size in sizes:
                    yield from _table(lines.read(size), schema).to_batches()

    def _good_lines(self, partial: Path, bad: BadRows) -> tuple[pa.Schema, list[int]]:
        """The columns of all good lines, which are written to `partial` in blocks of those sizes."""
        good, row, sizes = _Good(bad), 0, list[int]()
        with writing_to(partial), partial.open("wb") as sink:
            for number, block in enumerate(_blocks(self.file)):
                text = block.removeprefix(codecs.BOM_UTF8) if number == 0 else block
                lines = [line for line in text.split(b"\n") if line.strip()]
                sizes.append(sink.write(b"".join(b"%b\n" % line for line in good.of(lines, row))))
                row += len(lines)
        return good.schema, [size for size in sizes if size]


class _Good:
    """Finds the lines that can be rows of one table; `schema` is that of those found until now."""

    def __init__(self, bad: BadRows) -> None:
        import pyarrow as pa

        self._bad, self.schema = bad, pa.schema([])

    def of(self, lines: Sequence[bytes], row: int) -> list[bytes]:
        """Those of `lines` that are good, the first of them being row `row`: all if they parse together, else those of either half."""
        import pyarrow as pa

        if not lines:
            return []
        try:
            self.schema = pa.unify_schemas([self.schema, _schema(lines)], promote_options="permissive")
            return list(lines)
        except (pa.ArrowException, ValueError, RecursionError) as error:
            if len(lines) == 1:
                self._bad.add(row, _problem(lines[0], error))
                return []
        half = len(lines) // 2
        return [*self.of(lines[:half], row), *self.of(lines[half:], row + half)]


class _BadError(ValueError):
    """A line that pyarrow would take, or not survive, but that is no row of a table."""


def _schema(lines: Sequence[bytes]) -> pa.Schema:
    """The columns that these lines give: one row each, or a _BadError."""
    import pyarrow as pa

    content = b"\n".join(lines)
    content.decode()  # pyarrow does not look
    for line in lines:
        text = line.strip()
        if not (text.startswith(b"{") and text.endswith(b"}")):  # so no row goes on in the next line
            raise _BadError("is no JSON object")
        if text.count(b"{") + text.count(b"[") > _MANY_BRACKETS:
            json.loads(text)  # raises RecursionError long before pyarrow would crash
    table = _table(content)
    if table.num_rows != len(lines):
        raise _BadError("holds more than one object")
    schema = pa.schema([field.with_type(_dates_as_strings(field.type)) for field in table.schema])
    if max((_depth(kind) for kind in schema.types), default=0) > _DEEPEST:
        raise _BadError(f"is nested deeper than {_DEEPEST} levels")
    return schema


def _table(content: bytes, schema: pa.Schema | None = None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json

    options = {"explicit_schema": schema, "unexpected_field_behavior": "error"} if schema else {}
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
    return pyarrow.json.read_json(pa.BufferReader(content), reading, pyarrow.json.ParseOptions(**options))


def _dates_as_strings(kind: pa.DataType) -> pa.DataType:
    """pyarrow takes strings for dates where all of a block look like dates; another block may hold others."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_dates_as_strings(kind.value_type))
    return pa.struct([(field.name, _dates_as_strings(field.type)) for field in kind]) if pa.types.is_struct(kind) else kind


def _depth(kind: pa.DataType) -> int:
    return 1 + max((_depth(kind.field(number).type) for number in range(kind.num_fields)), default=0)


def _problem(line: bytes, error: Exception) -> str:
    """Why a line is no row, as a sentence without a subject."""
    try:
        value = json.loads(line.decode(), object_pairs_hook=_each_key_once)
    except UnicodeDecodeError as wrong:
        return f"is not UTF-8 at byte {wrong.start:,} of the line"
    except RecursionError:
        return "is nested too deep"
    except ValueError as wrong:
        return f"is no JSON object: {first_line(wrong)}"
    if not isinstance(value, dict):
        return "is no JSON object"
    if clash := re.search(r".*Field (.*) has incompatible types: (.*) vs (.*)", first_line(error)):
        return f"holds {clash[3]} in {clash[1]!r}, but the rows before hold {clash[2]}"
    return f"cannot be read: {first_line(error)}"


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []:
        raise _BadError(f"has the key {twice[0]!r} twice")
    return dict(pairs)
