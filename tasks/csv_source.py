"""Delimited text as a stream of text columns, and where exactly a file goes wrong."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from deployments.errors import BadInputError
from deployments.source import CsvSource
from tasks.files import Untouched, existing

_BLOCK_BYTES = 4 << 20
_READ_BYTES = 1 << 20


def read_csv(source: CsvSource, path: Path) -> pa.RecordBatchReader:
    """Open a delimited text file; every column is text.

    Raises:
        BadInputError: the file is missing, empty, half-written or not in its encoding; also while it is read.
    """
    if existing(path).is_dir():
        raise BadInputError(f"{path}: this is a folder; a csv source is one file")
    untouched = Untouched([path])
    header = _csv_header(source, path)
    try:
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(
                encoding=source.encoding,
                block_size=_BLOCK_BYTES,
                column_names=header,
                skip_rows_after_names=1,
            ),
            parse_options=pacsv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                null_values=list(source.null_values),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise _csv_error(path, source, header, error) from None

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except (pa.ArrowInvalid, UnicodeError) as error:
            untouched.confirm()
            raise _csv_error(path, source, header, error) from None
        untouched.confirm()
        _expect_closed_quotes(path, source)

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _csv_header(source: CsvSource, path: Path) -> list[str]:
    """The first row, checked: no duplicate and no empty names."""
    try:
        with path.open(encoding=_python_encoding(source), newline="") as handle:
            rows = csv.reader(handle, delimiter=source.delimiter)
            header = next(rows, [])
            second = handle.readline()
    except LookupError:
        raise BadInputError(f"{path}: there is no encoding called {source.encoding!r}") from None
    except UnicodeError:
        raise _encoding_error(path, source) from None
    except csv.Error:
        raise BadInputError(f"{path}: the first rows are not delimited text") from None
    if not header:
        raise BadInputError(f"{path}: the first line is blank; it must name the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BadInputError(f"{path}: the header names {', '.join(map(repr, twice))} more than once")
    if not all(name.strip() for name in header):
        at = next(i for i, name in enumerate(header, 1) if not name.strip())
        raise BadInputError(f"{path}: column {at} of the header has no name")
    if not second:
        raise BadInputError(f"{path}: the file has a header and no rows")
    return header


def _python_encoding(source: CsvSource) -> str:
    """Python keeps a byte order mark unless told otherwise; Arrow does not."""
    return "utf-8-sig" if codecs.lookup(source.encoding).name == "utf-8" else source.encoding


def _csv_error(path: Path, source: CsvSource, header: Sequence[str], error: Exception) -> BadInputError:
    """What is wrong with a file that Arrow refused, looked for once more at leisure to say where it is."""
    number = 0
    try:
        with path.open(encoding=_python_encoding(source), newline="") as handle:
            rows = csv.reader(handle, delimiter=source.delimiter, strict=True)
            for number, row in enumerate(rows):
                if row and len(row) != len(header):
                    return BadInputError(
                        f"{path}: row {number} (line {rows.line_num}) has {len(row)} values and the header "
                        f"{len(header)}; is the file half-written, or the delimiter another?"
                    )
    except UnicodeError:
        return _encoding_error(path, source)
    except csv.Error as quoting:
        return _quoting_error(path, number, quoting)
    if "straddl" in str(error):
        return BadInputError(f"{path}: a row is longer than {_BLOCK_BYTES >> 20} MB, the most there may be")
    return BadInputError(f"{path}: cannot be read as delimited text ({type(error).__name__})")


def _quoting_error(path: Path, row: int, error: csv.Error) -> BadInputError:
    if "unexpected end" in str(error) or "field larger" in str(error):
        return BadInputError(
            f"{path}: a quote opened in row {row + 1} is never closed, or its value is larger than "
            f"{csv.field_size_limit():,} characters; is the file half-written?"
        )
    return BadInputError(f"{path}: row {row + 1} has a quote inside a quoted value that is not doubled")


def _encoding_error(path: Path, source: CsvSource) -> BadInputError:
    """Where the first byte lies that is no text in the source's encoding."""
    decoder = codecs.getincrementaldecoder(source.encoding)()
    before = lines = 0
    with path.open("rb") as handle:
        while True:
            block = handle.read(_READ_BYTES)
            held = decoder.getstate()[0]
            try:
                lines += decoder.decode(block, final=not block).count("\n")
            except UnicodeError as error:
                start = error.start if isinstance(error, UnicodeDecodeError) else 0
                data = held + block
                row = lines + data[:start].count(b"\n")
                return BadInputError(
                    f"{path}: not {source.encoding} text at byte {before - len(held) + start + 1:,}, "
                    f"line {row + 1:,}; name the file's encoding in the source, e.g. encoding: latin-1"
                )
            before += len(block)
            if not block:
                return BadInputError(f"{path}: not {source.encoding} text")


def _expect_closed_quotes(path: Path, source: CsvSource) -> None:
    """Refuse a file that ends inside a quoted value: Arrow takes all that follows the quote for that value.

    An even number of quotes closes every one of them; only for an odd one is the file read once more.
    """
    if _quotes(path, source) % 2 == 0:
        return
    number = 0
    try:
        with path.open(encoding=_python_encoding(source), newline="") as handle:
            for _row in csv.reader(handle, delimiter=source.delimiter, strict=True):
                number += 1
    except csv.Error as error:
        raise _quoting_error(path, number - 1, error) from None


def _quotes(path: Path, source: CsvSource) -> int:
    """How many quotes a file has; bytes are counted where they can be, which is several times faster."""
    quotes = 0
    if _python_encoding(source) == "utf-8-sig":
        with path.open("rb") as raw:
            while data := raw.read(_READ_BYTES):
                quotes += data.count(b'"')
    else:
        with path.open(encoding=source.encoding, newline="") as handle:
            while text := handle.read(_READ_BYTES):
                quotes += text.count('"')
    return quotes
