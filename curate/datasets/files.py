"""Files of rows: which ones a path names, and their rows as one table, whatever types they have."""

import codecs
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features
from datasets.exceptions import DatasetsError
from datasets.table import table_cast

from curate.datasets.csv_files import Use, csv_tables, typed
from curate.datasets.exact_json import exact_tables
from curate.datasets.json_files import InexactError, json_tables, with_leaves
from curate.datasets.rows import MOST
from curate.datasets.streams import ENDINGS, MIB, open_bytes
from curate.datasets.tensors import PIECE
from curate.errors import DataError
from curate.runtime.large import mapped, released

UNREADABLE = (OSError, ValueError, LookupError, pa.ArrowException, DatasetsError)
Part = tuple[str, pa.Table]
"""A file, and rows of it or of it and files that follow."""


def ending_of(path: str) -> str:
    """What says how a file is read: its ending in small letters, that of compression left out."""
    stem, ending = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] if ending in ENDINGS else ending


def names_files(path: str) -> bool:
    """Whether a path has the ending of a file that can be read, or is a pattern of files."""
    return ending_of(path) in FORMATS or glob.has_magic(path)


def read_files(path: str, uses: Mapping[str, Use] | None) -> Dataset:
    """The rows of a file, or of all files that a pattern matches, in the order of their names.

    Columns of files that differ are put together where no value is changed by it: whole numbers
    with fractions, what is null or missing in one of them with what it is in another.

    Args:
        uses: what columns of CSV files are for, as `csv_files.typed` takes it.

    Raises:
        DataError: there is no such file, or none with rows; a file cannot be read, or its columns
            do not go with those before.
    """
    files = matching(path)
    kind = ending_of(files[0])
    filled = [file for file in files if _has_content(file)]
    if not filled:
        raise DataError(f"{path}: {'is empty' if len(files) == 1 else 'has no rows'}.")
    try:
        table, features = _joined(gathered(parts_of(filled)))
        if any(_holds_nothing(field.type) for field in table.schema) or (
            kind in (".json", ".jsonl") and any(_may_vary(field.type) for field in table.schema)
        ):
            raise InexactError
    except InexactError:
        features, parts = exact_tables(filled)
        table, _ = _joined(gathered(parts))
    if len(table) == 0:
        raise DataError(f"{path}: has no rows.")
    if kind == ".csv":
        ((_, table),) = gathered((path, rows) for rows in typed(table, uses))
        features = Features.from_arrow_schema(table.schema)
    info = datasets.DatasetInfo(features=features)
    table = table_cast(table, features.arrow_schema)
    return Dataset(table, info=info, fingerprint=digest(table))


def root_of(error: BaseException) -> BaseException:
    """The first of a chain of errors."""
    while error.__cause__ is not None or (error.__context__ is not None and not str(error)):
        error = error.__cause__ or error.__context__ or error
    return error


def reason_of(error: BaseException) -> str:
    """What the first of a chain of errors says, in one line."""
    root = root_of(error)
    return " ".join(str(root).split()) or type(root).__name__


def parts_of(files: Iterable[str]) -> Iterator[Part]:
    """The rows of files, in tables that may differ in their types; DataError names the file."""
    for file in files:
        try:
            for table in FORMATS[ending_of(file)](file):
                yield file, table
        except UNREADABLE as error:
            raise DataError(f"{file}: cannot be read: {reason_of(error)}") from error


def matching(path: str) -> list[str]:
    folder, name = os.path.split(path)
    pattern = os.path.join(glob.escape(folder), name) if os.path.isdir(folder) else path
    named = os.path.exists(path) or not glob.has_magic(path)
    files = [path] if named else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    endings = {ending_of(file) for file in files}
    if not files or not os.path.isfile(files[0]):
        raise DataError(f"{path}: no such file.")
    if len(endings) > 1 or not endings <= FORMATS.keys():
        raise DataError(
            f"{path}: matches files ending in {', '.join(sorted(endings))}; "
            f"give files of one kind among {', '.join(FORMATS)}."
        )
    return files


def _has_content(path: str) -> bool:
    """Whether there is anything to read in a file but a mark of its encoding, and space."""
    try:
        with open_bytes(path) as file:
            return bool(file.read(MIB).removeprefix(codecs.BOM_UTF8).strip())
    except (OSError, ValueError, DataError):
        return True  # the file is named where it is read


def _parquet_tables(path: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=MIB // 16) as file:
        metadata = file.metadata
        bytes_of = [metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups)]
        size = PIECE * metadata.num_rows // max(1, sum(bytes_of))
        for batch in file.iter_batches(min(max(size, 1), MOST)):
            yield pa.Table.from_batches([batch])


def _arrow_tables(path: str) -> Iterator[pa.Table]:
    with pa.memory_map(path) as file:
        try:
            reader = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(file)
            reader = map(reader.get_batch, range(reader.num_record_batches))
        for batch in reader:
            yield pa.Table.from_batches([batch])


FORMATS = MappingProxyType(
    {
        ".parquet": _parquet_tables,
        ".jsonl": json_tables,
        ".json": json_tables,
        ".csv": csv_tables,
        ".arrow": _arrow_tables,
    }
)
"""Ending -> what gives the rows of such a file, in tables that may differ in their types."""


def gathered(parts: Iterable[Part]) -> list[Part]:
    """The parts with rows, those of one schema together; on disk, in a file without a name."""
    found: list[tuple[str, int]] = []
    schema, writer = pa.schema([]), None
    folder = datasets.config.HF_DATASETS_CACHE
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=MIB) as file:
        for path, table in parts:
            if len(table) == 0:
                continue
            if writer is None or not schema.equals(table.schema, check_metadata=True):
                if writer is not None:
                    writer.close()
                found.append((path, file.tell()))
                schema, writer = table.schema, pa.ipc.new_stream(file, table.schema)
            writer.write_table(table, MOST)
        if writer is None:
            return []
        writer.close()
        file.flush()
        content = pa.py_buffer(mapped(file))
    pa.default_memory_pool().release_unused()
    return [(path, pa.ipc.open_stream(content.slice(start)).read_all()) for path, start in found]


def _joined(parts: list[Part]) -> tuple[pa.Table, Features]:
    """One table of all parts, and what `datasets` calls its columns."""
    parts = _with_same_classes([(path, plain_table(table)) for path, table in parts])
    declared: dict[str, Any] = {}
    schema, tables = pa.schema([]), []
    for path, table in parts:
        declared = {**Features.from_arrow_schema(table.schema), **declared}
        with _naming(path):
            own = table.schema.remove_metadata()
            schema = pa.unify_schemas([schema, own], promote_options="permissive")
    for path, table in parts:
        if table.schema.equals(schema):
            tables.append(table.replace_schema_metadata(None))
            continue
        tables.append(pa.table([_column(path, table, field) for field in schema], schema=schema))
    features = Features.from_arrow_schema(schema)
    for name, feature in declared.items():
        if Features({name: feature}).arrow_schema.field(name).type == schema.field(name).type:
            features[name] = feature
    return pa.concat_tables(tables) if tables else schema.empty_table(), features


def _column(path: str, table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """A column of a table in a type that holds its values, null where the table has none."""
    place = table.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(len(table), field.type)
    own = pa.table({field.name: table.column(place)})
    with _naming(path, f"the values of column {field.name}"):
        both = [pa.schema([field]).empty_table(), own]
        return pa.concat_tables(both, promote_options="permissive").column(0)


@contextmanager
def _naming(path: str, what: str = "its columns") -> Iterator[None]:
    """Say in which file a column was found that does not go with those before."""
    try:
        yield
    except pa.ArrowException as error:
        if FORMATS[ending_of(path)] is json_tables:
            raise InexactError from error
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{path}: {what} and those of the other files have no type in common: {reason}."
        ) from error


def plain_table(table: pa.Table) -> pa.Table:
    """A table whose columns have the types that `datasets` knows: no views, no dictionaries."""
    for change in (_without_views, _values_alone):  # Arrow looks up no views in dictionaries
        fields = [with_leaves(field, change) for field in table.schema]
        columns = [  # one by one: cast to what they are, Arrow breaks nulls in lists
            column if column.type == field.type else column.cast(field.type)
            for column, field in zip(table.columns, fields, strict=True)
        ]
        schema = pa.schema(fields, metadata=table.schema.metadata)
        table = pa.Table.from_arrays(columns, schema=schema)
    return table


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _without_views(kind.value_type), kind.ordered)
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return views.get(kind, kind)


def _values_alone(kind: pa.DataType) -> pa.DataType:
    return _values_alone(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _holds_nothing(kind: pa.DataType) -> bool:
    """Whether there is an object without keys in it, which Parquet cannot store."""
    inner = [kind.field(place) for place in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not inner) or any(_holds_nothing(f.type) for f in inner)


def _may_vary(kind: pa.DataType, depth: int = 0) -> bool:
    """Whether a list has objects with more in them, whose keys and numbers Arrow makes alike."""
    if pa.types.is_struct(kind):
        return depth >= 2 or any(_may_vary(inner.type, depth + (depth > 0)) for inner in kind)
    if pa.types.is_list(kind):
        return _may_vary(kind.value_type, max(1, depth))
    return depth >= 2 and pa.types.is_floating(kind)


def _with_same_classes(parts: list[Part]) -> list[Part]:
    """The parts with one numbering of the classes of a column: a class is its name.

    Raises:
        DataError: the classes within lists or mappings are not numbered alike.
    """
    features = [Features.from_arrow_schema(table.schema) for _, table in parts]
    _refuse_other_classes([path for path, _ in parts], features)
    for name in {name for own in features for name in own}:
        kinds = [own.get(name) for own in features]
        named = [kind for kind in kinds if isinstance(kind, ClassLabel)]
        names = [*dict.fromkeys(word for kind in named for word in kind.names)]
        if all(kind.names == names for kind in named):
            continue
        for place, ((path, table), kind) in enumerate(zip(parts, kinds, strict=True)):
            if isinstance(kind, ClassLabel):
                numbers = pa.array([names.index(word) for word in kind.names], pa.int64())
                column = pc.take(numbers, table.column(name))
                features[place][name] = ClassLabel(names=names)
                table = table.set_column(table.column_names.index(name), name, column)
                table = table.replace_schema_metadata(features[place].arrow_schema.metadata)
                parts[place] = path, table
    return parts


def _refuse_other_classes(paths: list[str], features: list[Features]) -> None:
    seen: dict[str, list[str]] = {}
    for path, own in zip(paths, features, strict=True):
        inner = [name for name in own if not isinstance(own[name], ClassLabel)]
        for place, names in (found for name in inner for found in _inner_classes(own[name], name)):
            if seen.setdefault(place, names) != names:
                raise DataError(
                    f"{path}: {place} has the classes {', '.join(names)}, but those of the files "
                    f"before are {', '.join(seen[place])}; give all files the same in one order."
                )


def _inner_classes(feature: Any, place: str) -> Iterator[tuple[str, list[str]]]:
    """Where in a column there are classes, and their names."""
    if isinstance(feature, ClassLabel):
        yield place, feature.names
    elif isinstance(feature, dict):
        for key, inner in feature.items():
            yield from _inner_classes(inner, f"{place}.{key}")
    elif hasattr(feature, "feature"):
        yield from _inner_classes(feature.feature, f"{place}[]")


def digest(table: pa.Table) -> str:
    """What identifies the content to `datasets`, which would pickle it to find out."""
    found = hashlib.blake2b(str(table.schema).encode(), digest_size=8)
    for batch in table.to_batches():
        for buffer in (b for column in batch.columns for b in column.buffers() if b is not None):
            found.update(buffer)
        released()
    return found.hexdigest()
