"""CSV and TSV, parsed by pyarrow: first every column as strings, then as the type that all its values have.

Not by pyarrow.dataset (25): it settles the types by the first block, and can name or leave out no bad row. Python's csv knows every row,
but takes about twice as long.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipelines.data.files import first_line
from pipelines.data.readers import parse_cache
from pipelines.data.readers.parse_cache import BadRows, Parsed, in_file, partial_beside, write
from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.csv

# Two more rows are given to the parser behind the last: of one and of two values, so that one of them at least is reported as ragged. Where
# neither comes out again, a quote that is never closed has swallowed them.
_END = "\x1araylway end"
# Stands for bytes that are not UTF-8, for pyarrow 25 fails at a ragged row with such bytes, whatever the handler of ragged rows says.
# Its characters are set aside by Unicode for what is never exchanged.
_MARK, _MARKED = "\ufdd0\ufdd1\ufdd0", "raylway mark"
# Stands for a NUL, beside which pyarrow 25 overlooks quotes and delimiters (apache/arrow issue 50481).
_NUL = "\ufdd2\ufdd3\ufdd2"


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _MARK, error.end


codecs.register_error(_MARKED, _mark)


class Delimited(Parsed):
    """A table with a header; the values of a TSV are divided by tabs. Values in quotes may hold line ends; empty lines are no rows.

    Bad rows are those with more or fewer values than the header, and those that are not UTF-8.
    """

    parser = "delimited 1"

    @property
    def _delimiter(self) -> str:
        return "\t" if self.file.suffix == ".tsv" else ","

    def _parse(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        with partial_beside(self.scratch / ".parsed" / "strings") as partial:
            write(partial, self._strings(bad), self.file)
            with pa.memory_map(str(partial)) as content:
                yield from _typed(pa.ipc.open_file(content))

    def _strings(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        """All good rows, every column as strings; first a batch without rows."""
        import pyarrow as pa

        ragged, schema, rows = _Ragged(bad), None, 0  # rows: those parsed, without the ragged ones
        try:
            for batch in self._raw(ragged):
                if schema is None and batch.num_rows:
                    schema, batch = self._header(batch), batch.slice(1)
                    yield pa.RecordBatch.from_pylist([], schema=schema)
                ragged.report()
                if batch.num_rows and batch.column(0)[-1].as_py() == _END:
                    ragged.ended, batch = True, batch.slice(0, batch.num_rows - 1)
                if schema is not None and batch.num_rows:
                    yield _decodable(pa.record_batch(batch.columns, schema=schema), rows, ragged, bad)
                rows += batch.num_rows
            ragged.report()
            if not ragged.ended:
                raise self._refusal(rows + len(ragged.rows) - 1, "a quote that is never closed")
        except (pa.ArrowException, OSError) as error:
            ragged.report()
            problem = first_line(error)
            if "straddles" in problem or "cannot infer number of columns" in problem:
                problem = f"a row of more than {parse_cache.BLOCK_BYTES:,} bytes, or a quote that is never closed"
            raise self._refusal(rows + len(ragged.rows) if schema else -1, problem) from None

    def _refusal(self, row: int, problem: str) -> DataError:
        where = f"its row {row:,}" if row >= 0 else "its header"
        return DataError(f"{self.file.name}: cannot be read as a table: near {where}: {problem}")

    def _raw(self, ragged: _Ragged) -> Iterator[pa.RecordBatch]:
        """All that the parser makes of the file: its first row is the header, every value a string."""
        import pyarrow as pa
        import pyarrow.csv as csv

        reading = csv.ReadOptions(use_threads=False, autogenerate_column_names=True, block_size=parse_cache.BLOCK_BYTES)
        parsing = csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=ragged)
        converting, end = csv.ConvertOptions(default_column_type=pa.string()), f"\n{_END}\n{_END}{self._delimiter}{_END}\n"
        with (
            self.file.stream() as stream,
            pa.TransformInputStream(stream, _repaired(end)) as content,
            csv.open_csv(content, reading, parsing, converting) as reader,
        ):
            yield from reader

    def _header(self, batch: pa.RecordBatch) -> pa.Schema:
        import pyarrow as pa

        names = [column[0].as_py().replace(_NUL, "\0") for column in batch.columns]
        if names[0] == _END:
            raise DataError(f"{self.file.name}: is empty")
        if any(_MARK in name for name in names):
            raise DataError(f"{self.file.name}: its header is not UTF-8")
        return pa.schema([(name, pa.string()) for name in names])


class _Ragged:
    """Rows with more or fewer values than the header, as the parser meets them: it is a block ahead of the batches that it gives."""

    def __init__(self, bad: BadRows) -> None:
        self._bad, self._unreported = bad, list[tuple[int, str]]()
        self.rows, self.ended = list[int](), False

    def __call__(self, row: pyarrow.csv.InvalidRow) -> str:
        if row.text.startswith(_END):
            self.ended = True
        else:
            self.rows.append(row.number - 2)  # the parser counts from 1, and the header
            values = f"{row.actual_columns:,} value{'s' * (row.actual_columns != 1)}"
            self._unreported.append((self.rows[-1], f"has {values}, but the header has {row.expected_columns:,}"))
        return "skip"

    def report(self) -> None:
        """Raises DataError for the first, unless they may be skipped."""
        for row, problem in self._unreported:
            self._bad.add(row, problem)
        self._unreported = []


def _repaired(end: str) -> Callable[[pa.Buffer], bytes]:
    """Makes the parser's input of a file's bytes, read in order: UTF-8, _MARK where it is not, and `end` behind the last."""
    decoder, last = codecs.getincrementaldecoder("utf-8-sig")(_MARKED), iter([end])

    def repaired(content: pa.Buffer) -> bytes:
        text = decoder.decode(content, final=not len(content)).replace("\0", _NUL)
        return (text if len(content) else text + next(last, "")).encode()  # asked on for more until there is none

    return repaired


def _decodable(batch: pa.RecordBatch, first: int, ragged: _Ragged, bad: BadRows) -> pa.RecordBatch:
    """The rows of which all values are UTF-8; `first` is the number of the batch's first row, the ragged ones not counted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    marked: dict[int, str] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        rows = pc.indices_nonzero(pc.match_substring(column, _MARK)).to_pylist()
        marked |= {row: name for row in rows if row not in marked}
    for row in sorted(marked):
        bad.add(in_file(first + row, ragged.rows), f"its column {marked[row]!r} is not UTF-8")
    return batch.filter(pa.array([row not in marked for row in range(batch.num_rows)])) if marked else batch


def _typed(strings: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    """The same rows, every column of the type that all its values have; first a batch without rows."""
    import pyarrow as pa

    kinds = _kinds(strings)
    schema = pa.schema(zip(strings.schema.names, kinds, strict=True))
    yield pa.RecordBatch.from_pylist([], schema=schema)
    for number in range(strings.num_record_batches):
        columns = [_converted(values, kind) for values, kind in zip(strings.get_batch(number).columns, kinds, strict=True)]
        yield pa.record_batch(columns, schema=schema)


def _kinds(strings: pa.ipc.RecordBatchFileReader) -> list[pa.DataType]:
    """Of each column the first type that all its values have, in the order in which pyarrow itself tries them for a whole file."""
    import pyarrow as pa

    times = [pa.timestamp(unit, zone) for unit in ("s", "ns") for zone in (None, "UTC")]
    order = [pa.null(), pa.int64(), pa.bool_(), pa.date32(), pa.time32("s"), *times, pa.float64(), pa.string()]
    kinds, settled = [0] * len(strings.schema), False
    while not settled:
        settled = True
        for number in range(strings.num_record_batches):
            for column, values in enumerate(strings.get_batch(number).columns):
                while kinds[column] < len(order) - 1 and _converted(values, order[kinds[column]]) is None:
                    kinds[column] += 1
                    settled = settled and number == 0  # the batches before have not been tried with this type
    return [order[kind] for kind in kinds]


def _converted(values: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Strings as pyarrow's CSV parser reads them where a column has that type; None if one cannot be."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as csv

    if kind == pa.string():
        return pc.replace_substring(values, _NUL, "\0")
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.record_batch({"": values}), sink, csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    content = sink.getvalue()
    try:
        table = csv.read_csv(
            pa.BufferReader(content),
            csv.ReadOptions(use_threads=False, column_names=[""], block_size=content.size + 1),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(column_types={"": kind}),
        )
    except pa.ArrowInvalid:
        return None
    return table.column(0).combine_chunks()
