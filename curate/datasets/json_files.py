"""JSON Lines and lists of JSON objects, by Arrow: strings stay strings, numbers are exact."""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from curate.datasets.streams import MIB, open_bytes
from curate.errors import DataError

BLOCK, LONGEST = 16 * MIB, 1024 * MIB
"""Bytes that are parsed at a time, and the longest row."""
SPACE = re.compile(r"[ \t\n\r]+")
SHOWN = 40
DEEPEST = 100
"""Lists and objects within each other in a row."""
EXACT = 2.0**53
"""From here on a number may have been a whole one that no float can hold."""
NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[{}]\n")))
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
NO_OBJECT = re.compile(rb"\n[ \t\r]*(?=[^{\s])")


class InexactError(Exception):
    """Arrow cannot read these rows, or not exactly."""


def json_tables(path: str) -> Iterator[pa.Table]:
    """The rows of a file, a block at a time.

    Raises:
        DataError: a row is no object, or too long or too deep.
        InexactError: a value is not JSON, or no Arrow type holds a column's values as they are.
    """
    known = pa.schema([])
    for _, block in json_blocks(path):
        table = _parsed(block, known)
        plain = pa.schema([with_leaves(field, _undated) for field in table.schema])
        if plain != table.schema:
            table = _read(block, plain)
        if any(_inexact(column) for column in table.columns):
            raise InexactError
        try:
            known = pa.unify_schemas([known, table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise InexactError from error
        yield table


def json_blocks(path: str) -> Iterator[tuple[int, bytes]]:
    """Whole lines with an object each, with the number of rows before them; BLOCK or a line."""
    before = 0
    with open_bytes(path) as file:
        start = file.peek(3)[:3]
        if start == codecs.BOM_UTF8:
            file.read(3)
        first = b""
        while not first.strip() and (line := file.readline(LONGEST)):
            first = line
        if not _is_object(first, path):
            first, file = _as_lines(first + file.read(), path), io.BufferedReader(io.BytesIO())
        while block := first + file.read(BLOCK) + file.readline(LONGEST):
            _check(block, path, before)
            yield before, block
            before += _filled(block)
            first = b""


def _is_object(line: bytes, path: str) -> bool:
    """Whether a line is an object by itself, as all are in JSON Lines."""
    if _too_deep(line):
        raise _deep(path, 0)
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _as_lines(document: bytes, path: str) -> bytes:
    """JSON Lines from a list of objects, or from objects over several lines, values as written."""
    try:
        text = document.decode()
    except UnicodeDecodeError as error:
        lines_before = document[: document.rfind(b"\n", 0, error.start) + 1]
        raise not_json(path, _filled(lines_before), error) from error
    decoder, lines = json.JSONDecoder(), list[str]()
    place = _next(text, 0)
    listed = text.startswith("[", place)
    place = _next(text, place + listed)
    while place < len(text) and not (listed and text.startswith("]", place)):
        try:
            value, end = decoder.raw_decode(text, place)
        except ValueError as error:
            raise not_json(path, len(lines), error) from error
        except RecursionError as error:
            raise _deep(path, len(lines)) from error
        if not isinstance(value, dict):
            raise _no_object(path, len(lines), text[place:end])
        lines.append(text[place:end].replace("\n", " ").replace("\r", " "))
        place = _next(text, end)
        if listed and text.startswith(",", place):
            place = _next(text, place + 1)
        elif listed and not text.startswith("]", place):
            raise not_json(path, len(lines), "there is no comma before it, or the list has no end")
    if listed and text[place + 1 :].strip():
        raise not_json(path, len(lines), "it stands behind the list")
    return "\n".join(lines).encode()


def _next(text: str, place: int) -> int:
    """The place of what comes next but space."""
    found = SPACE.match(text, place)
    return place if found is None else found.end()


def _check(block: bytes, path: str, before: int) -> None:
    """Refuse lines that Arrow would not survive."""
    lines = b"\n" + block
    other = NO_OBJECT.search(lines)
    if other:
        line = lines[other.end() :].split(b"\n", 1)[0].decode(errors="replace")
        raise _no_object(path, before + _filled(lines[: other.end()]), line)
    if len(block) > LONGEST:
        raise DataError(f"{path}: a row from row {before} on is longer than {LONGEST // MIB} MiB.")
    if max(map(len, block.translate(None, NO_BRACKETS).split(b"\n"))) > 2 * DEEPEST:
        rows = filter(bytes.strip, block.split(b"\n"))
        deep = next((row for row, line in enumerate(rows) if _too_deep(line)), None)
        if deep is not None:
            raise _deep(path, before + deep)


def _too_deep(line: bytes) -> bool:
    if len(line.translate(None, NO_BRACKETS)) <= 2 * DEEPEST:
        return False
    brackets = np.frombuffer(STRING.sub(b"", line).translate(None, NO_BRACKETS), dtype=np.uint8)
    steps = np.where(np.isin(brackets, [*b"[{"]), 1, -1)
    return bool((np.cumsum(steps) > DEEPEST).any())


def _filled(block: bytes) -> int:
    return sum(1 for line in block.split(b"\n") if line.strip())


def not_json(path: str, row: int, reason: object) -> DataError:
    """What to raise for a row that cannot be read."""
    return DataError(f"{path}: cannot be read: row {row}: {reason}.")


def _no_object(path: str, row: int, text: str) -> DataError:
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return DataError(f"{path}: row {row} is {shown}; every row must be an object of columns.")


def _deep(path: str, row: int) -> DataError:
    return DataError(
        f"{path}: row {row} is nested more than {DEEPEST} deep, which no column of data is."
    )


def _parsed(block: bytes, known: pa.Schema) -> pa.Table:
    """The rows of a block, in the columns known so far if they fit, and others as it has them."""
    try:
        return _read(block, known)
    except InexactError:
        if not len(known):
            raise
    return _read(block, pa.schema([]))


def _read(block: bytes, schema: pa.Schema) -> pa.Table:
    try:
        return pa_json.read_json(
            io.BytesIO(block),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pa_json.ParseOptions(explicit_schema=schema),
        )
    except pa.ArrowInvalid as error:
        raise InexactError from error


def with_leaves(field: pa.Field, change: Callable[[pa.DataType], pa.DataType]) -> pa.Field:
    """A field with other types where it is neither a list nor a struct, at any depth."""
    kind = field.type
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([with_leaves(inner, change) for inner in kind]))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return field.with_type(of(with_leaves(kind.value_field, change)))
    return field.with_type(change(kind))


def _undated(kind: pa.DataType) -> pa.DataType:
    """Strings for what Arrow guesses to be dates."""
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _inexact(values: Any) -> bool:
    """Whether a float may stand for a whole number that no float can hold."""
    kind = values.type
    if pa.types.is_struct(kind):
        return any(_inexact(pc.struct_field(values, place)) for place in range(kind.num_fields))
    if pa.types.is_list(kind):
        return _inexact(pc.list_flatten(values))
    return pa.types.is_floating(kind) and bool(
        pc.any(pc.greater_equal(pc.abs(values), EXACT)).as_py()
    )
