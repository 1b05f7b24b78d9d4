"""Where rows come from: one function from a source to a `datasets.Dataset`."""

import csv
import glob
import hashlib
import os
import pkgutil
import re
from collections import Counter
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, packaged_modules

from curate.errors import DataError, MissingExtraError

BUILDERS = MappingProxyType(
    {
        ".parquet": "parquet",
        ".jsonl": "json",
        ".json": "json",
        ".csv": "csv",
        ".arrow": "arrow",
    }
)
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    csv.Error,
    pa.ArrowException,
    datasets.exceptions.DatasetsError,
)
FINGERPRINT_ROWS = 1000
READERS_OF_DATASETS = {module.name for module in pkgutil.iter_modules(packaged_modules.__path__)}
"""Names by which `datasets` would read whatever lies in the working directory."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def read(path: str, *, split: str | None = None, name: str | None = None) -> Dataset:
    """Read a source.

    Args:
        path: `sklearn:digits` (iris, wine, breast_cancer, diabetes); a Parquet, JSON,
            JSON Lines, CSV or Arrow file, or a glob of such files; a directory written by
            `save_to_disk`; otherwise the name of a dataset on the Hugging Face Hub.
        split: which split, where the source has several; "train" if it has that one. Slices
            and sums are written as for `datasets`: `train[:1000]`, `train+validation`.
        name: the configuration of a Hub dataset.

    Raises:
        DataError: nothing is there, it cannot be read, or it has no rows.
    """
    try:
        data = _reader(path)(path, split, name)
    except UNREADABLE as error:
        reason = _innermost(error)
        if "corresponds to no data" in reason:  # what `datasets` says of a file without rows
            raise DataError(f"{path}: has no rows.") from error
        raise DataError(f"{path}: cannot be read: {reason}") from error
    if len(data) == 0:
        raise DataError(f"{path}: has no rows.")
    return data


def _reader(path: str) -> Callable[[str, str | None, str | None], Dataset]:
    if path.startswith("sklearn:"):
        return _read_sklearn
    if os.path.isdir(path):
        return _read_directory
    if os.path.splitext(path)[1] in BUILDERS or glob.has_magic(path):
        return _read_files
    if os.path.isfile(path):
        raise DataError(
            f"{path}: files of this kind cannot be read; use one of {', '.join(BUILDERS)}."
        )
    if not HUB_NAME.fullmatch(path):
        raise DataError(f"{path}: no such file or directory.")
    return _read_hub


def _read_sklearn(path: str, split: str | None, name: str | None) -> Dataset:
    _refuse_options(path, split=split, name=name)
    try:
        from sklearn import datasets as bundled
    except ImportError as error:
        raise MissingExtraError("scikit-learn", f"data source {path}", "demo") from error
    key = path.removeprefix("sklearn:")
    known = ("digits", "iris", "wine", "breast_cancer", "diabetes")
    if key not in known:
        raise DataError(f"{path}: there is sklearn:{', sklearn:'.join(known)}.")
    bunch = getattr(bundled, f"load_{key}")()
    features = datasets.Features(
        {
            "features": datasets.List(datasets.Value("float32"), length=bunch.data.shape[1]),
            "label": datasets.Value("float64")
            if key == "diabetes"
            else datasets.ClassLabel(names=[str(n) for n in bunch.target_names]),
        }
    )
    columns = {"features": bunch.data.astype("float32").tolist(), "label": bunch.target.tolist()}
    return Dataset.from_dict(columns, features=features)


def _read_directory(path: str, split: str | None, name: str | None) -> Dataset:
    _refuse_options(path, name=name)
    if not any(os.path.isfile(os.path.join(path, f)) for f in ("dataset_dict.json", "state.json")):
        raise DataError(
            f"{path}: is a directory that save_to_disk did not write; for files in it, give a "
            f"glob such as {os.path.join(path, '*.parquet')}."
        )
    return _pick_split(datasets.load_from_disk(path), path, split)


def _read_files(path: str, split: str | None, name: str | None) -> Dataset:
    _refuse_options(path, split=split, name=name)
    files = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
    if not files or not os.path.isfile(files[0]):
        raise DataError(f"{path}: no such file.")
    endings = {os.path.splitext(file)[1] for file in files}
    if len(endings) > 1 or not endings <= BUILDERS.keys():
        raise DataError(
            f"{path}: matches files ending in {', '.join(sorted(endings))}; "
            f"give files of one kind among {', '.join(BUILDERS)}."
        )
    empty = next((file for file in files if os.path.getsize(file) == 0), None)
    if empty is not None:
        raise DataError(f"{empty}: is empty.")
    builder = BUILDERS[endings.pop()]
    checks = {"json": _refuse_null, "csv": _refuse_header}
    for file in files if builder in checks else ():
        checks[builder](file)
    return datasets.load_dataset(builder, data_files=files, split="train")


def _refuse_null(path: str) -> None:
    """A row that is null: of a block of those alone, pyarrow dies with a segmentation fault."""
    with open(path, "rb") as file:
        if re.match(rb"(\xef\xbb\xbf)?[\s\[]*null\b", file.read(1000)):
            raise DataError(
                f"{path}: the first row is null; every row must be an object of columns."
            )


def _refuse_header(path: str) -> None:
    """Columns that would be read as one, or renamed unasked."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        names = next(csv.reader(file), [])
    other = re.search("[;\t|]", names[0]) if len(names) == 1 else None
    if other:
        raise DataError(
            f"{path}: has one column, {names[0]!r}; columns must be separated by commas, but "
            f"these seem to be by {other[0]!r}."
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has two columns {twice!r}; give each a name of its own.")


def _read_hub(path: str, split: str | None, name: str | None) -> Dataset:
    if path in READERS_OF_DATASETS:
        raise DataError(
            f"{path}: is a kind of file, not a dataset; give the file, or a glob such as "
            "data/*.parquet."
        )
    try:
        found = datasets.load_dataset(path, name)
    except (ConnectionError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(
            f"{path}: is no file or directory here, and no dataset of that name could be "
            f"reached on the Hub: {_innermost(error)}"
        ) from error
    return _pick_split(found, path, split)


def _pick_split(found: Dataset | DatasetDict, path: str, split: str | None) -> Dataset:
    if isinstance(found, Dataset):
        _refuse_options(path, split=split)
        return found
    names = list(found)
    if split is None and len(names) > 1 and "train" not in names:
        raise DataError(f"{path}: has splits {', '.join(names)}; say which with `split`.")
    wanted = split or ("train" if "train" in names else names[0])
    return found[wanted] if wanted in found else _slices(found, path, wanted)


def _slices(found: DatasetDict, path: str, wanted: str) -> Dataset:
    """Parts of splits, in the notation of `datasets`: `train[:10%]`, `train+validation`."""
    lengths = {name: len(data) for name, data in found.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{path}: has no split {wanted}; it has {', '.join(lengths)}, or a slice such as "
            f"{next(iter(lengths))}[:1000]."
        ) from error
    return datasets.concatenate_datasets(
        [found[part.splitname].select([*range(part.from_, part.to)]) for part in parts]
    )


def _refuse_options(path: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None:
            raise DataError(f"{path}: `{option}` means nothing for this source; remove it.")


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None or (error.__context__ is not None and not str(error)):
        error = error.__cause__ or error.__context__ or error
    return " ".join(str(error).split()) or type(error).__name__


def describe(data: Dataset) -> dict[str, Any]:
    """What identifies the data in a provenance record: its fingerprint is that of its content.

    Costs one pass over it, at about a gigabyte a second.
    """
    digest = hashlib.blake2b(repr(data.features).encode(), digest_size=8)
    for part in data.with_format("arrow").iter(FINGERPRINT_ROWS):
        for batch in part.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return {
        "rows": len(data),
        "columns": data.column_names,
        "fingerprint": digest.hexdigest(),
    }
