"""Files that rows name: those of the data's own folder and no others."""

import io
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Features, Image, LargeList, List, Value

from curate.datasets import read
from curate.errors import DataError

FEATURES: dict[str, tuple[Any, Any]] = {
    "image": (Image(), lambda cell: cell),
    "audio": (Audio(decode=False), lambda cell: cell),
    "list": (List(Image()), lambda cell: [cell]),
    "two": (List(Image(), length=2), lambda cell: [cell, cell]),
    "large list": (LargeList(Image()), lambda cell: [cell]),
    "struct": ({"picture": Image()}, lambda cell: {"picture": cell}),
    "list of structs": (List({"picture": Image()}), lambda cell: [cell and {"picture": cell}]),
}
OUTSIDE = ("/etc/hostname", "../secret.png", "own/link.png", "own/../secret.png")
ADDRESSES = ("http://127.0.0.1:9/a.png", "file:///etc/hostname", "zip://a.png::http://127.0.0.1:9")


@pytest.fixture
def png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    PIL.Image.new("L", (4, 4)).save(file, "png")
    Path("own/pictures").mkdir(parents=True)
    for name in ("own/pictures/a.png", "secret.png"):
        Path(name).write_bytes(file.getvalue())
    Path("own/link.png").symlink_to(Path("secret.png").absolute())
    return file.getvalue()


def write(kind: str, *paths: str, bytes: bytes) -> None:
    """Rows with a picture whose bytes are there, with none at all, and with these files."""
    feature, within = FEATURES[kind]
    features = Features({"cell": feature, "x": Value("int64")})
    cells = [{"bytes": bytes, "path": "/gone.png"}, None]
    cells += [{"bytes": None, "path": path} for path in paths]
    rows = [{"cell": within(cell), "x": k} for k, cell in enumerate(cells)]
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), "own/rows.parquet")


@pytest.mark.parametrize("kind", FEATURES)
def test_a_file_outside_or_an_address_is_refused_by_its_name(kind: str, png: bytes) -> None:
    inside = str(Path("own/pictures/a.png").absolute())
    for path in (*OUTSIDE, *ADDRESSES):
        write(kind, inside, path, bytes=png)
        for source in ("own/rows.parquet", "own/*.parquet"):
            with pytest.raises(DataError) as error:
                read(source)
            assert f"{source}: column cell, in rows 0 to 3, names {path!r}" in str(error.value)
            assert "outside_files: true" in str(error.value)
        assert len(read("own/rows.parquet", outside_files=True)) == 4


@pytest.mark.parametrize("kind", FEATURES)
def test_files_of_the_datas_own_folder_are_read(kind: str, png: bytes) -> None:
    write(kind, "own/pictures/a.png", "own/pictures/../pictures/a.png", bytes=png)
    assert len(read("own/rows.parquet")) == 4
