"""Folders of pictures, in which the folder that a picture lies in is its class."""

import os
from collections.abc import Iterator
from contextlib import suppress

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, Value

from curate.datasets.files import digest, gathered
from curate.datasets.rows import MOST
from curate.errors import DataError

ENDINGS = (
    *(".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Of files that are pictures, in small letters: those of the formats that `images` decodes."""
STRAY = ("desktop.ini", "thumbs.db")
"""Files that systems leave where people looked at pictures."""


def holds_pictures(path: str) -> bool:
    """Whether a path is a folder with a folder in it that has pictures, and little else."""
    with suppress(OSError):  # said where it is read
        return os.path.isdir(path) and any(_mostly(folder) for folder in _folders(path))
    return False


def _mostly(folder: "os.DirEntry[str]") -> bool:
    are = [_is_picture(file) for file in _files(folder.path)]
    return 2 * sum(are) > len(are)


def read_folder(path: str) -> Dataset:
    """The columns `image`, `label`, the name of its folder, and `file`, where it lies in `path`.

    Raises:
        DataError: a picture has no class, a folder of a class has folders, or what is no picture.
    """
    loose = next((file for file in _files(path) if _is_picture(file)), None)
    if loose is not None:
        raise DataError(f"{loose.path}: lies in no folder, and so has no class; put it in one.")
    classes = [folder for folder in _folders(path) if _pictures(folder, path)]
    label = ClassLabel(names=[folder.name for folder in classes])
    features = Features({"image": Image(), "label": label, "file": Value("string")})

    def tables() -> Iterator[tuple[str, pa.Table]]:
        for number, folder in enumerate(classes):
            files = _pictures(folder, path)
            for first in range(0, len(files), MOST):
                some = files[first : first + MOST]
                cells = [{"bytes": None, "path": name} for name in some]
                files_of = [os.path.relpath(name, path) for name in some]
                columns = {"image": cells, "label": [number] * len(some), "file": files_of}
                yield folder.path, pa.table(columns, schema=features.arrow_schema)

    ((_, table),) = gathered(tables())
    info = datasets.DatasetInfo(features=features)
    return Dataset(table, info=info, fingerprint=digest(table))


def _pictures(folder: "os.DirEntry[str]", path: str) -> list[str]:
    """The pictures of a class by name."""
    inner = next(_folders(folder.path), None)
    if inner is not None:
        raise DataError(
            f"{inner.path}: lies within the folder {folder.name} of {path}, which would be a "
            f"class; give {folder.path} itself, or have all pictures of a class in one folder."
        )
    files = [*_files(folder.path)]
    other = next((file for file in files if not _is_picture(file)), None)
    if other is not None:
        raise DataError(
            f"{other.path}: is not known to be a picture; move it elsewhere, or convert it to one "
            f"of {', '.join(ENDINGS)}."
        )
    return [file.path for file in files]


def _is_picture(file: "os.DirEntry[str]") -> bool:
    return file.name.lower().endswith(ENDINGS)


def _folders(path: str) -> "Iterator[os.DirEntry[str]]":
    return (entry for entry in _entries(path) if entry.is_dir())


def _files(path: str) -> "Iterator[os.DirEntry[str]]":
    files = (entry for entry in _entries(path) if not entry.is_dir())
    return (file for file in files if file.name.lower() not in STRAY)


def _entries(path: str) -> "list[os.DirEntry[str]]":
    """What is in a folder and not hidden, by name."""
    with os.scandir(path) as found:
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
