"""Hostile files: data, models, results and folders made by somebody who means ill."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from filelock import FileLock

from planted import runs
from planted.bench import (
    RECIPE,
    Bench,
    Ended,
    Fault,
    Found,
    apart,
    command,
    done,
    one_line,
    resumed,
)

SECRET = "what nobody is to see"
FACTORY = """
from pathlib import Path

from torch import nn


def build():
    Path("ran").touch()
    return nn.Linear(4, 2)
"""
OUTS = {
    "--out /": ("/", "--overwrite"),
    "--out ..": ("..", "--overwrite"),
    "--out . that is not ours": (".", "--overwrite"),
    "--out a file": ("rows.parquet", "--overwrite"),
    "--out below a file": ("rows.parquet/out", "--quiet"),
    "--out a name of 300 characters": ("n" * 300, "--quiet"),
    "--out a link": ("link", "--overwrite"),
    "--out a link to nowhere": ("nowhere", "--quiet"),
    "--out somebody's folder": ("mine", "--overwrite"),
}
UNFINISHED: dict[str, Callable[[Path], object]] = {
    "with a file of somebody's": lambda f: (f / "thesis.txt").write_text("mine"),
    "with a file of somebody's called run.json": lambda f: (f / "run.json").write_text("{}"),
    "with a hidden folder": lambda f: (f / ".git").mkdir(),
    "with a lock that says something": lambda f: (f / "lock").write_text("mine"),
    "with savepoints and no name": lambda f: (f / "score-look_ahead").mkdir(),
    "with a link for a lock": lambda f: (f / "lock").symlink_to("../mine/thesis.txt"),
    "with a link for a folder": lambda f: (f / "score-look_ahead").symlink_to("../mine"),
}
"""What is in a folder that has the name of ours."""


def picture() -> bytes:
    """A PNG."""
    file = io.BytesIO()
    PIL.Image.new("L", (4, 4), 99).save(file, "png")
    return file.getvalue()


def write_pictures(feature: Any, within: Callable[[Any], Any], path: str) -> None:
    """Rows that are passed on with a picture, one of which is a file elsewhere."""
    features = Features({**runs.rows().features, "seen": feature})
    rows = [
        row | {"seen": within({"bytes": picture(), "path": None})} for row in runs.rows().to_list()
    ]
    rows[5]["seen"] = within({"bytes": None, "path": path})
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), "rows.parquet")


def state(at: Path) -> dict[str, str]:
    """What is in a folder, all but what Arrow keeps; a folder by its names, a file by its text."""
    return {
        str(path.relative_to(at)): path.read_bytes().hex() if path.is_file() else ""
        for path in sorted(at.rglob("*"))
    }


def refusal(at: Path, before: dict[str, str], ended: Ended, *codes: int) -> Found:
    """A refusal in one line, and everything as it was."""
    if ended.code not in (codes or (2,)):
        return Found("", f"exit code {ended.code}: {ended.said[-200:]}")
    changed = {*state(at).items()} ^ {*before.items()}
    lost = [name for name in before if name not in state(at) or state(at)[name] != before[name]]
    wrong = one_line(ended) or (f"changed: {sorted(x[0] for x in changed)}" if changed else "")
    return Found(f"gone or changed: {lost}" if lost else "", wrong)


def elsewhere(feature: Any, within: Callable[[Any], Any], path: str) -> Fault:
    """A picture that is a file outside of the data, in a column that is passed on."""

    def fault(at: Path) -> Found:
        (at.parent / "secret.png").write_text(SECRET)
        apart(at, lambda: done(lambda: write_pictures(feature, within, path)))
        return refusal(at, state(at), apart(at, resumed()))

    return fault


def out(name: str, option: str) -> Fault:
    """A place that is not to be written."""

    def fault(at: Path) -> Found:
        (at / "mine").mkdir()
        (at / "mine/thesis.txt").write_text("mine")
        (at / "link").symlink_to("mine")
        (at / "nowhere").symlink_to("gone")
        before = state(at)
        return refusal(at, before, apart(at, command("select", RECIPE, "--out", name, option)))

    return fault


def folder(fill: Callable[[Path], object], option: str) -> Fault:
    """A folder that is ours by its name only."""

    def fault(at: Path) -> Found:
        (at / "mine").mkdir()
        (at / "mine/thesis.txt").write_text("mine")
        place = at / ".out.unfinished"
        place.mkdir()
        fill(place)
        before = state(at)
        return refusal(at, before, apart(at, command("select", RECIPE, "--out", "out", option)))

    return fault


def linked(at: Path) -> Found:
    """The folder itself is a link."""
    (at / "mine").mkdir()
    (at / "mine/thesis.txt").write_text("mine")
    (at / ".out.unfinished").symlink_to("mine")
    return refusal(at, state(at), apart(at, resumed()))


def model_code(at: Path) -> Found:
    """A model whose files bring their own code."""
    apart(at, lambda: done(runs.make_texts))
    (at / "tiny/own.py").write_text(
        "open('ran', 'w').close()\n"
        "from transformers import GPT2Config\n"
        "class Own(GPT2Config):\n    model_type = 'own'\n"
    )
    config = json.loads((at / "tiny/config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (at / "tiny/config.json").write_text(json.dumps(config))
    found = refusal(at, state(at), apart(at, resumed()))
    return Found(found.lost, "its code was run" if (at / "ran").exists() else found.wrong)


def factory(*arguments: str, code: int) -> Fault:
    """Results whose recipe names code."""

    def fault(at: Path) -> Found:
        (at / "theirs.py").write_text(FACTORY)
        apart(at, resumed("model={factory: 'theirs:build'}"))
        (at / "ran").unlink()
        ended = apart(at, command(*arguments))
        if (at / "ran").exists():
            return Found("", "its code was run")
        return Found("", "" if ended.code == code else f"exit code {ended.code}: {ended.said}")

    return fault


def tampered(bench: Bench, change: Callable[[Path], object], *, refused: bool) -> Fault:
    """What a run left is changed before it is resumed."""

    def fault(at: Path) -> Found:
        pattern = ".out.unfinished/score-*/000003.safetensors"
        apart(at, resumed(), until=lambda: next(at.glob(pattern), None) is not None)
        change(at / ".out.unfinished")
        if not refused:
            return bench.judge("select", at)
        before = state(at)
        return refusal(at, before, apart(at, resumed()))

    return fault


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_all(left: Path) -> None:
    """One bit in every savepoint."""
    for path in points(left):
        flip(path)


def points(left: Path) -> list[Path]:
    """Savepoints."""
    return sorted(left.glob("score-look_ahead/0*.safetensors"))


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def other_recipe(left: Path) -> None:
    """Another recipe in the run's own folder."""
    path = left.parent / RECIPE
    path.write_text(path.read_text().replace("lr: 1e-2", "lr: 2e-2"))


TAMPERED: dict[str, tuple[Callable[[Path], object], bool]] = {
    "a bit of the newest savepoint": (lambda f: flip(points(f)[-1]), False),
    "a bit of every savepoint": (flip_all, False),
    "savepoints cut short": (
        lambda f: [p.write_bytes(p.read_bytes()[:99]) for p in points(f)],
        False,
    ),
    "a pickle for a savepoint": (lambda f: points(f)[-1].write_bytes(pickle.dumps(Trap())), False),
    "savepoints of another run": (lambda f: shutil.copy(points(f)[0], points(f)[-1]), False),
    "a run.json cut short": (lambda f: (f / "run.json").write_text('{"run'), True),
    "a run.json with another value": (
        lambda f: (f / "run.json").write_text(
            (f / "run.json").read_text().replace('"threads": 1', '"threads": 2')
        ),
        True,
    ),
    "another recipe": (other_recipe, True),
    "other data": (
        lambda f: shutil.copy(f.parent.parent / "other.parquet", f.parent / "rows.parquet"),
        True,
    ),
}


def twice(at: Path) -> Found:
    """Two selections to one place at a time."""
    (at / ".out.unfinished").mkdir()
    with FileLock(at / ".out.unfinished/lock"):
        return refusal(at, state(at), apart(at, resumed()))


def verified_twice(at: Path) -> Found:
    """Two verifications in one place at a time."""
    (at / "v").mkdir()
    with FileLock(at / "v/verify.lock"):
        arguments = ("verify", RECIPE, "--out", "v", "--examples", "4", "--quiet")
        return refusal(at, state(at), apart(at, command(*arguments)))


def faults(bench: Bench) -> dict[str, Fault]:
    """By what is hostile."""
    other = bench.folder / "other.parquet"
    apart(bench.folder, lambda: done(lambda: runs.rows(121).to_parquet(str(other))))
    one: Callable[[Any], Any] = lambda cell: cell  # noqa: E731
    listed: Callable[[Any], Any] = lambda cell: [cell]  # noqa: E731
    named: dict[str, Fault] = {
        "a picture that is /etc/hostname": elsewhere(Image(), one, "/etc/hostname"),
        "a picture above the data": elsewhere(Image(), one, "../secret.png"),
        "a picture at an address": elsewhere(Image(), one, "http://127.0.0.1:9/a.png"),
        "a picture in an archive at an address": elsewhere(
            Image(), one, "zip://a.png::http://127.0.0.1:9/a.zip"
        ),
        "a list of such pictures": elsewhere(List(Image()), listed, "/etc/hostname"),
        "a picture deep in a column": elsewhere(
            List({"a": Image(), "b": Value("string")}),
            lambda cell: [{"a": cell, "b": "x"}],
            "/etc/hostname",
        ),
        "code in a model's files": model_code,
        "verify of results that name code": factory("verify", "out", "--examples", "4", code=2),
        "inspect of results that name code": factory("inspect", "out", "--row", "1", code=0),
        "report of results that name code": factory("report", "out", code=0),
        ".out.unfinished is a link": linked,
        "two selections at a time": twice,
        "two verifications at a time": verified_twice,
    }
    named |= {name: out(*arguments) for name, arguments in OUTS.items()}
    for name, fill in UNFINISHED.items():
        for option in ("--resume", "--overwrite"):
            named[f".out.unfinished {name}, {option}"] = folder(fill, option)
    for name, (change, refused) in TAMPERED.items():
        named[f"{name}, resumed"] = tampered(bench, change, refused=refused)
    return named
