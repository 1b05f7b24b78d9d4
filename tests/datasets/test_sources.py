"""Every kind of source gives the same rows; every wrong one gives one clear line."""

import resource
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from curate.datasets import fingerprint_of, read
from curate.datasets.sources import SOURCES
from curate.errors import DataError, RunError
from curate.runtime import large

ROWS = Dataset.from_dict(
    {"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "label": [0, 1, 0], "note": ["a", "b", "c"]}
)


def write(kind: str, to: Path) -> str:
    data = ROWS.remove_columns("x") if kind == "csv" else ROWS
    if kind == "parquet":
        data.to_parquet(to / "rows.parquet")
    elif kind == "jsonl":
        data.to_json(to / "rows.jsonl")
    elif kind == "json":
        data.to_json(to / "rows.json")
    elif kind == "csv":
        data.to_csv(to / "rows.csv")
    elif kind == "arrow":
        data.save_to_disk(to / "dir")
        return str(next((to / "dir").glob("*.arrow")))
    elif kind == "glob":
        data.select([0, 1]).to_parquet(to / "part-0.parquet")
        data.select([2]).to_parquet(to / "part-1.parquet")
        return str(to / "part-*.parquet")
    elif kind == "saved":
        data.save_to_disk(to / "saved")
        return str(to / "saved")
    elif kind == "saved-dict":
        DatasetDict({"train": data, "other": data.select([0])}).save_to_disk(to / "dict")
        return str(to / "dict")
    return str(to / f"rows.{kind}")


KINDS = ["parquet", "jsonl", "json", "csv", "arrow", "glob", "saved", "saved-dict"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_rows_in_order(kind: str, tmp_path: Path) -> None:
    rows = read(write(kind, tmp_path))
    assert rows["label"][:] == [0, 1, 0]
    assert rows["note"][:] == ["a", "b", "c"]
    if kind != "csv":
        assert rows["x"][:] == ROWS["x"][:]


def test_split_of_a_saved_dict(tmp_path: Path) -> None:
    path = write("saved-dict", tmp_path)
    assert len(read(path, split="other")) == 1
    with pytest.raises(DataError, match="has no split nope; it has train, other"):
        read(path, split="nope")


def test_slices_and_sums_of_splits(tmp_path: Path) -> None:
    path = write("saved-dict", tmp_path)
    assert read(path, split="train[1:]")["note"][:] == ["b", "c"]
    assert read(path, split="train[:67%]")["note"][:] == ["a", "b"]
    assert read(path, split="other+train[-1:]")["note"][:] == ["a", "c"]
    for wrong in ("train[:x]", "train+nope", "train["):
        with pytest.raises(DataError, match=r"has no split .*; it has train, other, or a slice"):
            read(path, split=wrong)
    with pytest.raises(DataError, match="has no rows"):
        read(path, split="train[3:]")


def test_several_splits_without_train_have_to_be_named(tmp_path: Path) -> None:
    DatasetDict({"a": ROWS, "b": ROWS}).save_to_disk(tmp_path / "dict")
    with pytest.raises(DataError, match="has splits a, b; say which with `split`"):
        read(str(tmp_path / "dict"))


def test_digits_come_with_scikit_learn() -> None:
    digits = read("sklearn:digits")
    assert len(digits) == 1797
    assert isinstance(digits.features["label"], datasets.ClassLabel)
    assert len(digits[0]["features"]) == 64
    assert read("sklearn:diabetes").features["label"].dtype == "float64"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.parquet", None, "no such file"),
        ("absent/also.jsonl", None, "no such file"),
        ("empty.jsonl", "", "is empty"),
        ("broken.jsonl", '{"a": 1}\n{"a":\n', "cannot be read"),
        ("header.csv", "a,b\n", "has no rows"),
        (
            "semicolons.csv",
            "a;b\n1;2\n",
            "columns must be separated by commas, .* separated by ';'",
        ),
        ("tabs.csv", "a\tb\n1\t2\n", "columns must be separated by commas"),
        ("twice.csv", "a,b,a\n1,2,3\n", "has two columns 'a'"),
        ("broken.parquet", "not parquet", "cannot be read"),
        ("notes.txt", "hello", "files of this kind cannot be read"),
        ("a dir/..//x y", None, "no such file or directory"),
        ("sklearn:mnist", None, "there is sklearn:digits"),
        ("none-*.csv", None, "no such file"),
    ],
)
def test_what_cannot_be_read_says_so(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    path = name if name.startswith("sklearn:") else str(tmp_path / name)
    if content is not None:
        Path(path).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_directory_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="save_to_disk did not write"):
        read(str(tmp_path))


def test_mixed_glob_is_refused(tmp_path: Path) -> None:
    write("parquet", tmp_path)
    write("csv", tmp_path)
    with pytest.raises(DataError, match=r"files ending in .csv, .parquet"):
        read(str(tmp_path / "rows.*"))


def test_hub_name_that_cannot_be_reached() -> None:
    with pytest.raises(DataError, match="no dataset of that name could be reached on the Hub"):
        read("nobody/nothing-here")


@pytest.mark.parametrize("option", ["split", "name"])
@pytest.mark.parametrize("kind", ["parquet", "saved", "sklearn"])
def test_options_that_mean_nothing_are_refused(option: str, kind: str, tmp_path: Path) -> None:
    path = "sklearn:iris" if kind == "sklearn" else write(kind, tmp_path)
    with pytest.raises(DataError, match=f"`{option}` means nothing for this source; remove it"):
        read(path, **{option: "train"})


@pytest.mark.parametrize(
    ("path", "position"),
    [
        ("sklearn:digits", 0),
        (".", 3),
        ("absent.parquet", 4),
        ("data/*", 4),
        ("user/data", 5),
        ("data", 5),
        ("a b", None),
        ("/absent", None),
    ],
)
def test_the_first_kind_of_source_that_matches_reads(path: str, position: int | None) -> None:
    matching = [k for k, source in enumerate(SOURCES) if source.matches(path)]
    assert (matching[0] if matching else None) == position


@pytest.mark.parametrize("content", ["null\n{}\n", "[null, {}]", " \n[ null]"])
def test_a_first_row_of_null_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError, match="row 0 is null; every row must be an object"):
        read(str(path))


def test_a_name_of_a_kind_of_file_is_not_a_dataset() -> None:
    with pytest.raises(DataError, match="json: is a kind of file, not a dataset; give the file"):
        read("json")


def test_a_fingerprint_is_that_of_the_content_in_its_order(tmp_path: Path) -> None:
    one = fingerprint_of(ROWS)
    assert (one["rows"], one["columns"]) == (3, ["x", "label", "note"])
    again = fingerprint_of(read(write("saved", tmp_path)))
    assert again == one
    others = [ROWS.select([0, 2, 1]), ROWS.select([0, 1]), ROWS.rename_column("x", "y")]
    prints = {fingerprint_of(other)["fingerprint"] for other in others} | {one["fingerprint"]}
    assert len(prints) == 4


def test_string_views_are_strings(tmp_path: Path) -> None:
    texts = {
        "a": pa.array(["x", None], pa.string_view()),
        "b": pa.array([["x"], []], pa.list_(pa.string_view())),
        "c": pa.array([{"d": b"x"}] * 2, pa.struct({"d": pa.binary_view()})),
    }
    pq.write_table(pa.table(texts), tmp_path / "rows.parquet")
    data = read(str(tmp_path / "rows.parquet"))
    kinds = {str(field.type).replace("element", "item") for field in data.data.schema}
    assert kinds == {"large_string", "list<item: large_string>", "struct<d: large_binary>"}
    assert data[:] == {"a": ["x", None], "b": [["x"], []], "c": [{"d": b"x"}] * 2}


def test_a_full_cache_is_told_with_its_path(tmp_path: Path) -> None:
    """Real writes that fail: files may grow to so many bytes only."""
    (tmp_path / "rows.csv").write_text("x,label\n" + "1,2\n" * 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(RunError) as error:
            read(str(tmp_path / "rows.csv"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{datasets.config.HF_DATASETS_CACHE}, where" in str(error.value)
    assert "cannot be written: File too large; make room there" in str(error.value)
    assert len(read(str(tmp_path / "rows.csv"))) == 100


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"label": "\xff\xfe", "x": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be read: row 0: 'utf-8' codec"):
        read(str(path))


@pytest.mark.parametrize("split", ["train", "train[1:3]"])
def test_pages_of_a_directory_are_let_go_of(split: str, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"n": [*range(5)], "text": ["a", "b", None, "d", "e"]})
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "rows"))
    before = len(large._maps)
    data = read(str(tmp_path / "rows"), split=split)
    assert len(large._maps) == before + 1
    large.released()
    assert data.to_list() == (rows if split == "train" else rows.select([1, 2])).to_list()
    assert data.features == rows.features
