"""Folders of pictures: a folder is a class."""

from pathlib import Path

import PIL.Image
import pytest
import torch

from curate.datasets import fingerprint_of, read, read_features
from curate.errors import DataError


def picture(path: Path, shade: int = 9, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (shade, shade, shade)).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for k, name in enumerate(["dog/b.png", "cat: [x]/2.png", "cat: [x]/10.PNG", "dog/a.png"]):
        picture(folder / name, shade=10 * k)
    (folder / "dog" / "Thumbs.db").write_text("what a system leaves")
    (folder / "dog" / ".hidden.png").write_text("no picture")
    (folder / "empty").mkdir()
    (folder / "about.txt").write_text("not of a class")
    return folder


def test_rows_are_pictures_in_the_order_of_their_names(photos: Path) -> None:
    data = read(str(photos))
    label = data.features["label"]
    names = [label.int2str(k) for k in data["label"]]
    assert names == ["cat: [x]", "cat: [x]", "dog", "dog"]
    assert data["file"][:] == ["cat: [x]/10.PNG", "cat: [x]/2.png", "dog/a.png", "dog/b.png"]
    features = read_features(data, ["image"], "photos", dtype=torch.float32)
    assert features.shape == (4, 3, 5, 6)
    assert features[:, 0, 0, 0].tolist() == [20, 10, 30, 0]


def test_a_picture_that_is_another_is_other_data(photos: Path) -> None:
    prints = [fingerprint_of(read(str(photos)))["fingerprint"] for _ in range(2)]
    picture(photos / "dog" / "a.png", shade=200)
    prints.append(fingerprint_of(read(str(photos)))["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


def test_a_folder_without_pictures_is_no_class(photos: Path) -> None:
    assert read(str(photos)).features["label"].names == ["cat: [x]", "dog"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loose.jpg", "loose.jpg: lies in no folder, and so has no class"),
        ("dog/puppy/1.png", "dog/puppy: lies within the folder dog of .*, which would be a class"),
        ("dog/notes.md", "dog/notes.md: is not known to be a picture"),
    ],
)
def test_what_would_be_lost_or_misread_is_refused(name: str, message: str, photos: Path) -> None:
    if name.endswith(".md"):
        (photos / name).write_text("a note")
    else:
        picture(photos / name)
    with pytest.raises(DataError, match=message):
        read(str(photos))


def test_pictures_that_are_links_to_elsewhere_are_refused(photos: Path, tmp_path: Path) -> None:
    picture(tmp_path / "private.png")
    (photos / "dog" / "link.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(DataError, match=r"link.png', which is not below"):
        read(str(photos))
    assert len(read(str(photos), outside_files=True)) == 5


def test_splits_of_folders_are_folders_themselves(photos: Path) -> None:
    with pytest.raises(DataError, match="no folder of pictures with one folder for each class"):
        read(str(photos.parent))
    with pytest.raises(DataError, match="`split` means nothing for this source"):
        read(str(photos), split="train")
