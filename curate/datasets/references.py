"""Files that rows name instead of holding them: pictures and the like, by path or address."""

import glob
import os
from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.features.features import require_storage_embed

from curate.errors import DataError

ROWS = 1000
"""Rows that are looked at together."""


def refuse_outside(data: Dataset, path: str) -> None:
    """Raise DataError if a row names a file outside the data's own folder, or an address.

    Whoever wrote the rows could have any file of this machine read, and put into what a run
    leaves; columns that are only passed on are read, too.

    Args:
        path: where the data came from.
    """
    named = [name for name, feature in data.features.items() if require_storage_embed(feature)]
    if not named:
        return
    own = _own_folder(path)
    first = 0
    for part in data.select_columns(named).with_format("arrow").iter(ROWS):
        for name in named:
            for file in dict.fromkeys(_files(part[name].combine_chunks(), data.features[name])):
                if not _is_below(file, own):
                    raise DataError(
                        f"{path}: column {name}, in rows {first} to {first + len(part) - 1}, names "
                        f"{file!r}, which is not below {own}; put the file's bytes into the data, "
                        "or say `outside_files: true` beside this path in the recipe."
                    )
        first += len(part)


def _own_folder(path: str) -> str:
    """The folder below which a source may name files: its own, or the cache of the Hub."""
    if os.path.isdir(path):
        return os.path.realpath(path)
    if os.path.isfile(path) or glob.has_magic(path):
        parts = path.split(os.sep)
        whole = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        return os.path.realpath(os.sep.join(parts[: min(whole, len(parts) - 1)]) or os.curdir)
    return os.path.realpath(str(datasets.config.HF_CACHE_HOME))


def _is_below(file: str, folder: str) -> bool:
    """Whether a file lies in a folder or deeper, wherever links lead; an address does not."""
    if "://" in file or "::" in file or "\0" in file:  # as fsspec writes them
        return False
    return os.path.commonpath([folder, os.path.realpath(file)]) == folder


def _files(array: Any, feature: Any) -> Iterator[str]:
    """The files named in a column, or within its cells."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if hasattr(feature, "embed_storage"):
        if pa.types.is_struct(array.type):
            paths = pc.struct_field(array, "path")
            array = paths.filter(pc.struct_field(array, "bytes").is_null())
        if not pa.types.is_binary(array.type):
            yield from array.drop_null().unique().to_pylist()
    elif isinstance(feature, dict):
        for name, inner in feature.items():
            yield from _files(pc.struct_field(array, name), inner)
    elif require_storage_embed(feature):
        yield from _files(pc.list_flatten(array), getattr(feature, "feature", None) or feature[0])
