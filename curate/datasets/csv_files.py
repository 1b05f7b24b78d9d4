"""CSV files: text first, as it stands there; numbers where a column is used as numbers."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from curate.datasets.columns import matching
from curate.datasets.streams import MIB, native_stream, open_bytes
from curate.errors import DataError
from curate.runtime.large import released

BLOCK = 64 * MIB
"""Bytes that are parsed at a time, and the longest row."""
Use = Literal["number", "label", "text"]
"""What a column is for. Numbers may be written in any way; labels are numbers only where written
plainly, since 007 is a name; an empty cell of either is null. Texts stay as they are."""
LONGEST = 2**31 - 1
PLAIN_INT = r"^-?(0|[1-9]\d*)$"
PLAIN_NUMBER = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d+)?$"


def csv_tables(path: str) -> Iterator[pa.Table]:
    """The rows of a file, all cells text, the empty ones too.

    Raises:
        DataError: the header has one name twice, or another separator; a row has too few cells
            or too many, or is not UTF-8; a quote is never closed.
    """
    names = _header(path)
    quotes = _quotes(path)
    try:
        reader = pa_csv.open_csv(
            native_stream(path),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: cannot be read: {_reason(error, names)}.") from error
    if quotes % 2:
        _refuse_open_quote(path)


def _text(file: io.BufferedReader) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")


def _header(path: str) -> list[str]:
    """The names of columns; refuses those that would be read as one, or cannot be told apart."""
    with open_bytes(path) as file:
        lines = csv.reader(_text(file))
        try:
            names = next(filter(None, lines), [])
        except csv.Error as error:
            raise DataError(f"{path}: cannot be read: its header: {error}.") from error
    if not names or "\ufffd" in "".join(names):
        what = "no header, the names of columns" if not names else "a header that is not UTF-8"
        raise DataError(f"{path}: cannot be read: it has {what}.")
    other = re.search("[;\t|]", names[0]) if len(names) == 1 else None
    if other:
        raise DataError(
            f"{path}: has one column, {names[0]!r}; columns must be separated by commas, but "
            f"these seem to be separated by {other[0]!r}."
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has two columns {twice!r}; give each a name of its own.")
    return names


def _reason(error: Exception, names: list[str]) -> str:
    """What Arrow says, with the name of a column, and with rows counted from 0 below the header."""
    words = re.sub(r"Row #(\d+)", lambda row: f"row {int(row[1]) - 2}", str(error))
    words = re.sub(r"In CSV column #(\d+)", lambda column: f"column {names[int(column[1])]}", words)
    if "straddling" in words:
        words = f"a row is longer than {BLOCK // MIB} MiB, or a quote is never closed"
    return " ".join(words.removeprefix("CSV parse error: ").split()).rstrip(".")


def _quotes(path: str) -> int:
    """How many there are; all of the file is unpacked once, so that its limit holds."""
    with open_bytes(path) as file:
        return sum(block.count(b'"') for block in iter(lambda: file.read(MIB), b""))


def _refuse_open_quote(path: str) -> None:
    """Refuse a last cell that took the rest of the file because its quote is never closed."""
    with open_bytes(path) as file:
        rows = csv.reader(_text(file), strict=True)
        before, limit = 0, csv.field_size_limit(LONGEST)
        try:
            for _ in filter(None, rows):
                before += 1
        except csv.Error as error:
            if "unexpected end" in str(error):  # and not a quote within a cell, which may be
                raise DataError(
                    f"{path}: cannot be read: row {before - 1}: a quote is never closed."
                ) from error
        finally:
            csv.field_size_limit(limit)


def typed(table: pa.Table, uses: Mapping[str, Use] | None) -> Iterator[pa.Table]:
    """Rows of text with the types that their columns are used as, batch by batch.

    Args:
        uses: name or pattern -> what it is for, a name or what comes first before the others.
            A column that is not used stays the text that it is, or whole numbers if they are
            written in just that way. None: all columns are labels.
    """
    use_of, everything = dict[str, Use](), dict[str, Use]({"*": "label"})
    for pattern, use in (everything if uses is None else uses).items():
        for name in matching(pattern, table.column_names):
            use_of.setdefault(name, use)
    casts = [
        next(cast for cast in CASTS[use_of.get(name)] if _fits(cast, table.column(name)))
        for name in table.column_names
    ]
    for batch in table.to_batches():
        columns = [cast(cells) for cast, cells in zip(casts, batch.columns, strict=True)]
        yield pa.table(columns, table.column_names)


def _fits(cast: "Cast", cells: pa.ChunkedArray) -> bool:
    """Whether a cast takes all cells; looks no further than the first that it does not."""
    for chunk in cells.chunks:
        if cast(chunk) is None:
            return False
        released()
    return True


def _plain(kind: pa.DataType) -> "Cast":
    """Numbers if writing them again gives every cell as it stands there."""

    def cast(cells: pa.Array) -> pa.Array | None:
        numbers = _cast(cells, kind)
        if numbers is None:
            return None
        text = pc.cast(numbers, pa.string())
        if pa.types.is_integer(kind):
            return numbers if pc.all(pc.equal(text, cells), min_count=0).as_py() else None
        size = pc.abs(numbers)
        pointed = pc.if_else(
            pc.match_substring(text, "."), text, pc.binary_join_element_wise(text, "0", ".")
        )
        usual = pc.and_(pc.greater_equal(size, 1e-4), pc.less(size, 1e15))
        same = pc.and_(pc.or_(pc.equal(size, 0), usual), pc.equal(pointed, cells))
        return numbers if pc.all(same, min_count=0).as_py() else None

    return cast


def _label(pattern: str, kind: pa.DataType) -> "Cast":
    """Numbers if every cell that is not empty is written plainly."""

    def cast(cells: pa.Array) -> pa.Array | None:
        filled = _without_empty(cells)
        plain = pc.all(pc.match_substring_regex(filled, pattern), min_count=0).as_py()
        return _cast(filled, kind) if plain else None

    return cast


def _number(kind: pa.DataType) -> "Cast":
    """Numbers, however they are written."""

    def cast(cells: pa.Array) -> pa.Array | None:
        filled = _trimmed(cells)
        hexadecimal = pc.any(pc.match_substring_regex(filled, "^-?0[xX]")).as_py()
        return None if hexadecimal else _cast(filled, kind)  # Arrow would take it

    return cast


def _trimmed(cells: pa.Array) -> pa.Array:
    trimmed = pc.utf8_trim(cells, " \t")
    return _without_empty(pc.replace_substring_regex(trimmed, r"^\+([\d.])", r"\1"))


def _without_empty(cells: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)


def _cast(cells: pa.Array, kind: pa.DataType) -> pa.Array | None:
    try:
        return pc.cast(cells, kind)
    except pa.ArrowInvalid:
        return None


def _as_it_stands(cells: pa.Array) -> pa.Array:
    return cells


Cast = Callable[[pa.Array], pa.Array | None]
"""Makes something else of cells of text; None if it cannot be made of all of them."""
CASTS: Mapping[Use | None, Sequence[Cast]] = MappingProxyType(
    {
        None: (_plain(pa.int64()), _plain(pa.float64()), _as_it_stands),
        "text": (_as_it_stands,),
        "label": (
            _label(PLAIN_INT, pa.int64()),
            _label(PLAIN_NUMBER, pa.float64()),
            _without_empty,
        ),
        "number": (*map(_number, (pa.int64(), pa.float64(), pa.bool_())), _trimmed),
    }
)
"""What may be made of a column by its use: the first that takes all cells, the last does."""
