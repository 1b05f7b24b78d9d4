"""Garbage in: exit code 2 and one line, or a plan; never a traceback, and nothing left behind."""

import copy
import csv
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.cli.main import cli, run
from curate.recipe.load import dump, parse
from tests.job import RECIPE, rows

FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=list(HealthCheck),
)
TRICKS = [*"*[{~ ", "../x", "a/b", "[!a]", "{got}", "%s", "a\nb", "\x00", "\x1b[31m", "x" * 3000]
TRICKS += ["é☃\U0001f600"]
NUMBERS = st.one_of(st.integers(-(10**30), 10**30), st.floats(), st.just(10**400))
ODD = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=8),
    st.sampled_from(TRICKS),
    st.sampled_from(["9" * 400 + "GiB", "full", "json", "math:pi", [], {}, [[[]]], [None]]),
    st.lists(st.one_of(NUMBERS, st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2),
)
FULL = parse(RECIPE) | {
    "objective": "classification",
    "evaluation": {"seeds": [0], "against": ["random"]},
    "trajectory": {"snapshots": 3, "disk": "1MiB", "gradients": "1MiB"},
    "tune": {"horizons": [2, "full"], "learning_rates": [0.1], "budget": 0.5},
}


def keys_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a recipe, and one in every section that is not there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in inner:
        yield (*path, key)
        if isinstance(below, dict | list):
            yield from keys_of(below, (*path, key))
    if isinstance(value, dict):
        yield (*path, "nonsense")


def put(recipe: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    section: Any = recipe
    for key in path[:-1]:
        section = section[key] if isinstance(section, list | dict) and section else {}
    if isinstance(section, dict) or (isinstance(section, list) and section):
        section[path[-1]] = value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("garbage")
    rows().to_parquet(str(folder / "rows.parquet"))
    (folder / "recipe.yaml").write_text(RECIPE)
    with chdir(folder):
        yield folder


def outcome(*arguments: str) -> tuple[int, str]:
    """The exit code and stderr of a command, which is one line if it refused; it left nothing."""
    before = sorted(Path().rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # files that `datasets` leaves open
        code = run(cli, [*arguments])
    said = err.getvalue()
    assert sorted(Path().rglob("*")) == before
    assert code in (0, 2), said
    if code:
        assert out.getvalue() == ""
        assert said.startswith("curate: ")
        assert said.endswith("\n")
        assert said[:-1].isprintable(), said
        assert len(said) < 5000
    return code, said


@FEW
@given(st.lists(st.tuples(st.sampled_from([*keys_of(FULL)]), ODD), min_size=1, max_size=2))
def test_garbage_in_a_recipe_is_refused_in_one_line(
    place: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    recipe = copy.deepcopy(FULL)
    for path, value in changes:
        put(recipe, path, value)
    (place / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    outcome("select", "recipe.yaml", "--plan")


@FEW
@given(st.binary(max_size=60))
def test_a_recipe_of_any_bytes_is_refused_in_one_line(place: Path, content: bytes) -> None:
    (place / "recipe.yaml").write_bytes(content)
    assert outcome("select", "recipe.yaml", "--plan")[0] == 2


def data_recipe(path: str, features: str = "a", label: str = "label") -> str:
    recipe = {
        "data": {
            "train": path,
            "columns": {"features": [features], "label": label},
            "validation": {"fraction": 0.2},
        },
        "training": {"batch_size": 8},
        "model": {"kind": "mlp", "hidden": [2]},
    }
    return yaml.safe_dump(recipe, allow_unicode=True)


def encoded(kind: str, table: list[dict[str, Any]]) -> bytes:
    if kind == "jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in table).encode()
    text = io.StringIO()
    names = list(table[0]) if table else ["a", "label"]
    csv.writer(text).writerows([names, *(row.values() for row in table)])
    if kind == "csv":
        return text.getvalue().encode()
    columns = {name: [row.get(name) for row in table] for name in names}
    try:
        found = pa.table(columns)
    except (pa.ArrowException, OverflowError):  # no column of one type
        found = pa.table({name: [str(v) for v in column] for name, column in columns.items()})
    binary = io.BytesIO()
    pq.write_table(found, binary)
    return binary.getvalue()


CELL = st.one_of(
    st.none(),
    st.floats(width=16),
    st.integers(0, 3),
    st.integers(-(2**70), 2**70),
    st.text(st.characters(codec="utf-8"), max_size=4),
    st.lists(st.integers(0, 1), max_size=2),
)


@settings(FEW, max_examples=30)
@given(
    kind=st.sampled_from(["csv", "jsonl", "parquet"]),
    table=st.lists(
        st.one_of(
            st.fixed_dictionaries({"a": st.floats(-9, 9, width=16), "label": st.integers(0, 1)}),
            st.fixed_dictionaries({"a": CELL, "label": CELL}),
        ),
        max_size=12,
    ),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=2),
)
def test_garbage_in_a_data_file_is_refused_in_one_line(
    place: Path, kind: str, table: list[dict[str, Any]], keep: float, flips: list[Any]
) -> None:
    content = bytearray(encoded(kind, table))
    content = content[: round(keep * len(content))]
    for where, byte in flips if content and kind != "parquet" else ():
        content[int(where * len(content))] = byte
    (place / f"data.{kind}").write_bytes(content)
    (place / "recipe.yaml").write_text(data_recipe(f"data.{kind}"))
    outcome("select", "recipe.yaml", "--plan")


@pytest.mark.parametrize("name", TRICKS[4:])
def test_a_column_of_any_name_is_a_name(place: Path, name: str) -> None:
    """As a label any name will do; as a pattern of features, * and [ mean what a shell means."""
    columns = {"a": [0.1 * i for i in range(20)], name: [str(i % 2) for i in range(20)]}
    pq.write_table(pa.table(columns), place / "data.parquet")
    (place / "recipe.yaml").write_text(data_recipe("data.parquet", label=name), encoding="utf-8")
    code, said = outcome("select", "recipe.yaml", "--plan")
    assert (code == 0) == ("\x00" not in name), said  # of which Parquet makes an end


ROWS = "".join(f"{i / 10},{'up' if i % 2 else 'down'}\n" for i in range(20))
HEADER = "a,label\n"
FILES: list[tuple[str, bytes | str, str]] = [
    ("data.csv", "", "data.csv: is empty"),
    ("data.csv", HEADER, "data.csv: has no rows"),
    ("data.csv", "\n\n", "data.csv: is empty."),
    (
        "data.csv",
        HEADER + ROWS + "1,up,2\n",
        "cannot be read: row 20: Expected 2 columns, got 3",
    ),
    ("data.csv", HEADER + ROWS + "1\n", "data.csv: cannot be read: row 20: Expected 2 columns"),
    ("data.csv", HEADER + ROWS + "1,\n", "column label is null at row 20"),
    ("data.csv", HEADER + ROWS + ",up\n", "column a is "),
    ("data.csv", HEADER + ROWS + "inf,up\n", "column a is NaN or infinite at row 20"),
    ("data.csv", HEADER + ROWS + "1e39,up\n", "column a is NaN or infinite at row 20"),
    (
        "data.csv",
        HEADER + ROWS + "much,up\n",
        "features must be numbers",
    ),
    ("data.csv", HEADER + ROWS + "much,up\n", "but row 20 is 'much'"),
    ("data.csv", HEADER + ROWS + '1,"up\n', "data.csv: cannot be read: row 20: a quote is never"),
    ("data.jsonl", '{"a":' + "[" * 10**5, "data.jsonl: row 0 is nested more than 100 deep"),
    ("data.json", '[{"a":' + "[" * 10**5, "data.json: row 0 is nested more than 100 deep"),
    ("data.csv", HEADER + "1,up\n" * 9, "column label has one class"),
    ("data.csv", HEADER + "1,up\n2,down\n", "of 2 rows is none"),
    ("data.csv", (HEADER + ROWS).encode("utf-16"), "data.csv: cannot be read: "),
    ("data.csv", "a;label\n1;up\n", "has one column, 'a;label'"),
    ("data.csv", b"\xff\xfe\x00" * 20, "data.csv: cannot be read: "),
    ("data.jsonl", "null", "data.jsonl: row 0 is null"),
    ("data.jsonl", "\n null\n" * 9, "data.jsonl: row 0 is null"),
    ("data.json", '[null, {"a": 1}]', "data.json: row 0 is null"),
    ("data.jsonl", "{", "data.jsonl: cannot be read: row 0: "),
    ("data.jsonl", '{"a": 1, "label": 0}\n{"a"', "data.jsonl: cannot be read: row 1: "),
    ("data.jsonl", "\x00", "data.jsonl: cannot be read: "),
    ("data.parquet", b"PAR1", "data.parquet: cannot be read: "),
    ("data.parquet", "not parquet at all", "Parquet magic bytes not found"),
    ("data.arrow", "no arrow", "data.arrow: cannot be read: "),
    ("data.txt", "1 2\n", "data.txt: files of this kind cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_a_wrong_file_is_named(place: Path, name: str, content: bytes | str, message: str) -> None:
    (place / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (place / "recipe.yaml").write_text(data_recipe(name))
    code, said = outcome("select", "recipe.yaml", "--out", "out")
    assert code == 2
    assert message in said


LABELS: list[Any] = [
    [{"x": 1}] * 20,
    [[0], [0, 1]] * 10,
    [[0], [1]] * 10,
    [[{"x": 0}]] * 20,
    [1e39, -1e39] * 10,
]


@pytest.mark.parametrize("labels", LABELS, ids=[str(labels[:2]) for labels in LABELS])
def test_labels_that_are_no_classes_are_refused(place: Path, labels: list[Any]) -> None:
    table = pa.table({"a": [0.1 * i for i in range(20)], "label": labels})
    pq.write_table(table, place / "data.parquet")
    (place / "recipe.yaml").write_text(data_recipe("data.parquet"))
    code, said = outcome("select", "recipe.yaml", "--plan")
    assert code == 2
    assert "class labels must be ints, strings or ClassLabel" in said


OVERRIDES: list[tuple[str, str]] = [
    (f"trajectory.disk={'9' * 400}GiB", "trajectory.disk: String should match pattern"),
    (f"training.epochs={'9' * 400}", "training.epochs: must be less than or equal to"),
    ("training.optimizer.lr=.nan", "training.optimizer.lr: must be a finite number"),
    ("training.seed=-1", "training.seed: must be greater than or equal to 0 but got -1"),
    ("data.train=json", "json: is a kind of file, not a dataset; give the file"),
    ("data.train=csv", "csv: is a kind of file, not a dataset; give the file"),
    ("data.train=../../x", "../../x: no such file or directory"),
    ('data.train="\\0"', "no such file or directory"),
    ('data.train="\\e[31m"', "\\x1b[31m"),
    ("data.train=.", ".: is a directory that save_to_disk did not write"),
    ("data.columns.features=['[']", "no column matches [; it has x, label, note, group"),
    ("data.columns.label=../x", "there is no column ../x"),
    ("model.hidden=[[1]]", "model.hidden.0: must be a valid integer"),
    ("model=[]", "model: must have `kind: mlp`"),
    ("training.optimizer=[]", "training.optimizer"),
    ("selection.keep={fraction: '0.5'}", "selection.keep.fraction: must be a valid number"),
    ("[=1", "[: unknown key"),
    ("data={1: 2}", "keys must be strings but got 1"),
    (f"selection.policy={'x' * 10**5}", "selection.policy: must be 'look_ahead', 'random'"),
]


@pytest.mark.parametrize("command", ["select", "tune"])
@pytest.mark.parametrize(("override", "message"), OVERRIDES, ids=[o[:24] for o, _ in OVERRIDES])
def test_a_wrong_value_is_named(place: Path, command: str, override: str, message: str) -> None:
    (place / "recipe.yaml").write_text(RECIPE)
    code, said = outcome(command, "recipe.yaml", "--out", "out", "--set", override)
    assert code == 2
    assert message in said


@pytest.mark.parametrize("command", ["inspect", "report"])
@pytest.mark.parametrize("name", ["", ".", "recipe.yaml", "gone", "../gone", "\x1b[31m", "x" * 300])
def test_what_no_run_wrote_is_refused(place: Path, command: str, name: str) -> None:
    assert outcome(command, name)[0] == 2


def test_libraries_add_no_lines(place: Path) -> None:
    """What `datasets` logs of a file that it cannot read, it raises as well."""
    (place / "data.csv").write_text(HEADER + ROWS + "1,up,2\n")
    (place / "recipe.yaml").write_text(data_recipe("data.csv"))
    done = subprocess.run(
        [sys.executable, "-m", "curate", "select", "recipe.yaml", "--plan"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
