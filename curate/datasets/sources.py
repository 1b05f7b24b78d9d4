"""Where rows come from: the kinds of source, and what identifies their content."""

import errno
import hashlib
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, packaged_modules

from curate.datasets.csv_files import Use
from curate.datasets.files import (
    FORMATS,
    UNREADABLE,
    names_files,
    read_files,
    reason_of,
    root_of,
)
from curate.datasets.folders import holds_pictures, read_folder
from curate.datasets.references import refuse_outside
from curate.datasets.session import PREFIX, handed
from curate.errors import DataError, MissingExtraError, RunError
from curate.runtime.large import released
from curate.runtime.tables import EMBEDDED, brings_files, embedded, read_mapped

BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a file system says that takes no more."""
FINGERPRINT_ROWS = 1000
FILE_KINDS = {module.name for module in pkgutil.iter_modules(packaged_modules.__path__)}
"""Names by which `datasets` would read whatever lies in the working directory."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def read(
    path: str,
    *,
    split: str | None = None,
    name: str | None = None,
    uses: Mapping[str, Use] | None = None,
    outside_files: bool = False,
) -> Dataset:
    """Read a source.

    Args:
        path: `sklearn:digits` (iris, wine, breast_cancer, diabetes); a directory written by
            `save_to_disk`; a folder of pictures with one folder for each class; a Parquet, JSON,
            JSON Lines, CSV or Arrow file, or a glob of such files; otherwise the name of a dataset
            on the Hugging Face Hub.
        split: which split, where the source has several; "train" if it has that one. Slices
            and sums are written as for `datasets`: `train[:1000]`, `train+validation`.
        name: the configuration of a Hub dataset.
        uses: what columns are for, where a file does not say what they hold: name or pattern ->
            use. Other columns stay the text that they are; None: all are as labels.
        outside_files: whether its rows may name files outside its own folder, or on the network.

    Raises:
        DataError: nothing is there, it cannot be read, it has no rows, or one names such a file.
    """
    source = next((source for source in SOURCES if source.matches(path)), None)
    if source is None:
        reason = "no such file or directory"
        if os.path.isfile(path):
            reason = f"files of this kind cannot be read; use one of {', '.join(FORMATS)}"
        raise DataError(f"{path}: {reason}.")
    for option, value in (("split", split), ("name", name)):
        if option not in source.options:
            _refuse_option(path, option, value)
    try:
        data = _of_known_types(_pick_split(source.read(path, name, uses), path, split))
        _validate(data.data.table)
        data = data if data._indices is None else data.flatten_indices()
    except UNREADABLE as error:
        _refuse_full_cache(path, error)
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    if len(data) == 0:
        raise DataError(f"{path}: has no rows.")
    if not outside_files:
        refuse_outside(data, path)
    return data


def _validate(table: pa.Table) -> None:
    """Raise ArrowInvalid at bytes that are no UTF-8, or offsets beyond the end."""
    try:
        for batch in table.to_batches():
            batch.validate(full=True)
            released()
    except pa.ArrowInvalid:
        table.validate(full=True)  # says in which column
        raise


def _of_known_types(data: Dataset) -> Dataset:
    """The data with the string views of Polars as strings, which all that follows can take."""

    def known(feature: Any) -> Any:
        if isinstance(feature, datasets.Value) and feature.dtype.endswith("_view"):
            return datasets.Value(f"large_{feature.dtype.removesuffix('_view')}")
        if isinstance(feature, dict):
            return {name: known(inner) for name, inner in feature.items()}
        if isinstance(feature, datasets.List):
            return datasets.List(known(feature.feature), length=feature.length)
        if isinstance(feature, datasets.LargeList):
            return datasets.LargeList(known(feature.feature))
        return feature

    features = datasets.Features({name: known(f) for name, f in data.features.items()})
    return data if features == data.features else data.cast(features)


def fingerprint_of(data: Dataset) -> dict[str, Any]:
    """The rows, columns and fingerprint that identify the content of data in provenance.

    Costs one pass over it, at about a gigabyte a second.
    """
    digest = hashlib.blake2b(repr(data.features).encode(), digest_size=8)
    files = brings_files(data.features)  # what is in them counts, not what they are called
    for part in data.with_format("arrow").iter(EMBEDDED if files else FINGERPRINT_ROWS):
        whole = embedded(part) if files else part
        for batch in whole.combine_chunks().to_batches():
            digest.update(batch.serialize())
        released()
    return {"rows": len(data), "columns": data.column_names, "fingerprint": digest.hexdigest()}


def _read_bundled(path: str, *_: Any) -> Dataset:
    try:
        from sklearn import datasets as bundled
    except ImportError as error:
        raise MissingExtraError("scikit-learn", f"data source {path}", "demo") from error
    key = path.removeprefix("sklearn:")
    if key not in BUNDLED:
        raise DataError(f"{path}: there is sklearn:{', sklearn:'.join(BUNDLED)}.")
    bunch = getattr(bundled, f"load_{key}")()
    numbers = datasets.List(datasets.Value("float32"), length=bunch.data.shape[1])
    if key == "diabetes":
        label = datasets.Value("float64")
    else:
        label = datasets.ClassLabel(names=[str(n) for n in bunch.target_names])
    return Dataset.from_dict(
        {"features": bunch.data.astype("float32").tolist(), "label": bunch.target.tolist()},
        features=datasets.Features({"features": numbers, "label": label}),
    )


def _read_directory(path: str, *_: Any) -> Dataset | DatasetDict:
    if not _is_saved(path):
        raise DataError(
            f"{path}: is a directory that save_to_disk did not write, and no folder of pictures "
            "with one folder for each class; for files in it, give a glob such as "
            f"{os.path.join(path, '*.parquet')}."
        )
    return datasets.load_from_disk(path)


def _is_saved(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, f)) for f in ("dataset_dict.json", "state.json"))


def _names_dataset(path: str) -> bool:
    return HUB_NAME.fullmatch(path) is not None and not os.path.isfile(path)


def _read_hub(path: str, name: str | None, _: Any) -> Dataset | DatasetDict:
    if path in FILE_KINDS:
        raise DataError(
            f"{path}: is a kind of file, not a dataset; give the file, or a glob such as "
            "data/*.parquet."
        )
    try:
        return datasets.load_dataset(path, name)
    except OSError as error:  # DatasetNotFoundError is one
        raise DataError(
            f"{path}: is not a file or directory here, and no dataset of that name could be "
            f"reached on the Hub: {reason_of(error)}"
        ) from error


class Source(NamedTuple):
    """A kind of source: the paths that it matches, the options that it has, and how it is read."""

    matches: Callable[[str], bool]
    options: tuple[str, ...]
    read: Callable[[str, str | None, Mapping[str, Use] | None], Dataset | DatasetDict]


SOURCES = (
    Source(lambda path: path.startswith("sklearn:"), (), _read_bundled),
    Source(lambda path: path.startswith(PREFIX), (), lambda path, *_: handed(path)),
    Source(
        lambda path: holds_pictures(path) and not _is_saved(path),
        (),
        lambda path, *_: read_folder(path),
    ),
    Source(os.path.isdir, ("split",), _read_directory),
    Source(names_files, (), lambda path, _, uses: read_files(path, uses)),
    Source(_names_dataset, ("split", "name"), _read_hub),
)
"""The kinds of source; the first that matches a path reads it."""


def _pick_split(data: Dataset | DatasetDict, path: str, split: str | None) -> Dataset:
    if isinstance(data, Dataset):
        _refuse_option(path, "split", split)
        return _mapped(data)
    names = list(data)
    if split is None and len(names) > 1 and "train" not in names:
        raise DataError(f"{path}: has splits {', '.join(names)}; say which with `split`.")
    wanted = split or ("train" if "train" in names else names[0])
    return _mapped(data[wanted]) if wanted in data else _slices(data, path, wanted)


def _mapped(data: Dataset) -> Dataset:
    """The same data, mapped so that pages of its files are let go of, if they are all there is."""
    tables = [read_mapped(part["filename"]) for part in data.cache_files]
    table = pa.concat_tables(tables) if tables else None
    if table is None or data._indices is not None or len(table) != len(data.data):
        return data
    if not table.schema.equals(data.data.schema):
        return data
    return Dataset(table, info=data.info, split=data.split, fingerprint=data._fingerprint)


def _slices(data: DatasetDict, path: str, wanted: str) -> Dataset:
    """Parts of splits, in the notation of `datasets`: `train[:10%]`, `train+validation`."""
    lengths = {name: len(rows) for name, rows in data.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{path}: has no split {wanted}; it has {', '.join(lengths)}, or a slice such as "
            f"{next(iter(lengths))}[:1000]."
        ) from error
    return datasets.concatenate_datasets(
        [_mapped(data[part.splitname]).select(range(part.from_, part.to) or []) for part in parts]
    )


def _refuse_option(path: str, option: str, value: str | None) -> None:
    if value is not None:
        raise DataError(f"{path}: `{option}` means nothing for this source; remove it.")


def _refuse_full_cache(path: str, error: BaseException) -> None:
    """Raise RunError if it is not the data that is at fault, but where its Arrow copy goes."""
    root = root_of(error)
    if isinstance(root, OSError) and root.errno in FULL:
        raise RunError(
            f"{path}: {datasets.config.HF_DATASETS_CACHE}, where `datasets` keeps it as Arrow, "
            f"cannot be written: {root.strerror}; make room there, or set HF_DATASETS_CACHE."
        ) from error
