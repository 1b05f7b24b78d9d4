"""The audit log: everything that happened, whole up to where a run died, and a dataset from it."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, load_dataset, load_from_disk
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader, read_log, write_kept
from curate.errors import DataError, OptionError, OutputError, RunError
from tests.integrations.loop import data, losses, net, target, train

COUNT = 96


def numbered(noise: float = 0.4) -> TensorDataset:
    return TensorDataset(*data(COUNT, noise).tensors, torch.arange(COUNT))


def logged(folder: Path, epochs: int = 2, **options: Any) -> LookAheadLoader:
    """A training of 96 rows in batches of 16, logged."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    settings: dict[str, Any] = {"horizon": 4, "rounds": 2, "row": lambda batch: batch[3]}
    torch.manual_seed(0)
    loader = DataLoader(numbered(), batch_size=16, shuffle=True)
    settings |= {"log": folder} | options
    wrapped = LookAheadLoader(loader, model, optimizer, losses, target(), **settings)
    for _ in range(epochs):
        train(wrapped, model, optimizer)
    return wrapped


def test_every_candidate_offered_is_there_once(tmp_path: Path) -> None:
    wrapped = logged(tmp_path / "log")
    log = read_log(tmp_path / "log")
    assert len(log) == 2 * COUNT == sum(report.candidates for report in wrapped.reports)
    assert log["kept"].sum() == sum(report.kept for report in wrapped.reports)
    assert log["step"].to_list() == [step for step in range(12) for _ in range(16)]
    assert log["window"].n_unique() == len(wrapped.reports) == 4
    assert log["row"].value_counts()["count"].to_list() == [2] * COUNT
    assert (log["kept"] == (log["weight"] > 0)).all()
    assert log["influence"].is_finite().all()
    windows = log.unique("window", maintain_order=True)
    for name in ("horizon", "steps", "predicted", "target_loss", "seconds"):
        assert windows[name].to_list() == [getattr(r, name) for r in wrapped.reports]
    realized = [report.realized for report in wrapped.reports]
    # the last window was trained on, but nobody has come back to say so
    assert windows["realized"].to_list()[:3] == realized[:3]


def test_a_log_has_the_influence_on_each_target(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    goals = {"a": target(), "b": [part[:20] for part in target()]}
    loader = DataLoader(numbered(), batch_size=16)
    wrapped = LookAheadLoader(loader, model, optimizer, losses, goals, rounds=1, log=tmp_path)
    train(wrapped, model, optimizer)
    log = read_log(tmp_path)
    mean = (log["influence/a"] + log["influence/b"]) / 2
    np.testing.assert_allclose(log["influence"], mean, rtol=1e-12)
    assert (log["influence/a"] != log["influence/b"]).any()
    assert log["row"].null_count() == len(log)


def test_what_was_being_written_when_a_run_died_is_left_out(tmp_path: Path) -> None:
    logged(tmp_path)
    whole = read_log(tmp_path)
    (path,) = tmp_path.glob("*.candidates.arrow")
    content = path.read_bytes()
    for cut in (1, 100, 500, len(content) // 2):
        path.write_bytes(content[:-cut])
        left = read_log(tmp_path)
        assert len(left) % 16 == 0
        assert 0 < len(left) < len(whole)
        assert left.drop("realized").equals(whole.head(len(left)).drop("realized"))


def test_where_windows_take_long_each_is_on_disk_before_it_is_trained_on(tmp_path: Path) -> None:
    model = net()
    loader, optimizer = DataLoader(numbered(), batch_size=16), torch.optim.AdamW(model.parameters())
    options: dict[str, Any] = {"horizon": 2, "rounds": 1, "log": tmp_path}
    wrapped = LookAheadLoader(loader, model, optimizer, losses, target(), **options)
    for number, _ in enumerate(wrapped):
        assert len(read_log(tmp_path)) == 32 * (number // 2 + 1)
        time.sleep(0.5)
    assert read_log(tmp_path)["realized"].null_count() == 0


KILLED = """
import os, signal, sys, time
import torch
from pathlib import Path
from tests.output.test_audit_log import logged
from curate.integrations.loop import LiveLoop

hand, times = LiveLoop._part, []

def watched(self, batch, weights):
    times.append(time.monotonic())
    if len(times) == 90:
        Path(sys.argv[2]).write_text(" ".join(str(times[-1] - t) for t in times))
        os.kill(os.getpid(), signal.SIGKILL)
    return hand(self, batch, weights)

LiveLoop._part = watched
logged(Path(sys.argv[1]), epochs=99, horizon=1, rounds=1, effort="exact")
"""


def test_a_process_that_is_killed_loses_the_windows_of_its_last_moment_at_most(
    tmp_path: Path,
) -> None:
    log, ages = tmp_path / "log", tmp_path / "ages"
    done = subprocess.run([sys.executable, "-c", KILLED, str(log), str(ages)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = read_log(log)
    assert left["window"].unique().to_list() == list(range(len(left) // 16))
    lost = 90 - len(left) // 16
    assert left["realized"].null_count() <= 16
    seconds = [float(age) for age in ages.read_text().split()]
    assert all(age < 2 for age in seconds[90 - lost :])  # on a machine that others use


def test_another_run_goes_on_in_the_same_log(tmp_path: Path) -> None:
    for _ in range(2):
        logged(tmp_path, epochs=1)
    log = read_log(tmp_path)
    assert log["run"].to_list() == [0] * COUNT + [1] * COUNT


def table() -> Dataset:
    x, y, wrong, row = numbered().tensors
    return Dataset.from_dict(
        {"x": x.tolist(), "label": y.tolist(), "wrong": wrong.tolist(), "id": row.tolist()}
    )


def test_an_online_run_ends_in_a_dataset(tmp_path: Path) -> None:
    logged(tmp_path / "log", epochs=4)
    scores = write_kept(tmp_path / "log", table(), tmp_path / "out", keep=0.5)
    kept = load_from_disk(str(tmp_path / "out"))["train"]
    assert len(kept) == 48 == scores["kept"].sum()
    assert load_dataset(str(tmp_path / "out"), split="train")["id"][:] == kept["id"][:]
    assert "48 of 96 kept" in (tmp_path / "out" / "report.html").read_text()
    assert kept["id"][:] == scores.filter("kept")["row"].to_list()
    assert np.mean(kept["wrong"]) < 0.5 * np.mean(table()["wrong"])
    assert scores["seen"].to_list() == [4] * COUNT
    assert pl.read_parquet(tmp_path / "out" / "scores.parquet").equals(scores)
    log = read_log(tmp_path / "log")
    means = log.group_by("row").agg(pl.col("influence").mean()).sort("row")
    np.testing.assert_allclose(scores["influence"], means["influence"], rtol=1e-10)


def test_without_a_share_the_rows_stay_that_the_loop_kept(tmp_path: Path) -> None:
    logged(tmp_path / "log", epochs=3)
    data_file = tmp_path / "data.parquet"
    table().to_parquet(str(data_file))
    scores = write_kept(tmp_path / "log", data_file, tmp_path / "out")
    log = read_log(tmp_path / "log")
    times = log.group_by("row").agg(pl.col("kept").sum()).sort("row")["kept"].to_list()
    assert scores["kept"].to_list() == [n >= 2 for n in times]
    assert scores["reason"].to_list() == [f"kept {n} of 3 times" for n in times]


def test_rows_never_offered_are_not_kept(tmp_path: Path) -> None:
    logged(tmp_path / "log")
    longer = Dataset.from_dict({"id": list(range(COUNT + 4))})
    scores = write_kept(tmp_path / "log", longer, tmp_path / "out", keep=1.0)
    assert scores["reason"].to_list()[COUNT:] == ["never offered"] * 4
    assert scores["kept"].sum() == COUNT


def test_what_makes_no_dataset_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no log"):
        read_log(tmp_path)
    logged(tmp_path / "bare", epochs=1, row=None)
    out = tmp_path / "out"
    with pytest.raises(DataError, match="96 of 96 entries have no row id"):
        write_kept(tmp_path / "bare", table(), out)
    logged(tmp_path / "log", epochs=1)
    with pytest.raises(DataError, match="but the dataset has 10 rows"):
        write_kept(tmp_path / "log", table().select(range(10)), out)
    with pytest.raises(OptionError, match="keep must be above 0"):
        write_kept(tmp_path / "log", table(), out, keep=0.0)
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(OutputError, match="exists already"):
        write_kept(tmp_path / "log", table(), out)


def test_ids_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row must give one value per example, shape \(16,\)"):
        logged(tmp_path, row=lambda batch: batch[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (lambda batch: ["a"] * len(batch[0]), "row must give integers"),
        ("row", "row is 'row', but a batch of type list has no such key"),
    ],
)
def test_ids_that_are_none_are_refused(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        logged(tmp_path, row=row)


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        logged(tmp_path / "file")


def test_a_column_by_the_name_that_it_had_is_read(tmp_path: Path) -> None:
    from curate.output import audit_log

    table = pa.table({"window": [0], "realised": [0.5]})
    with (
        pa.OSFile(str(tmp_path / "w.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    found = audit_log._read(tmp_path / "w.arrow", audit_log.WINDOW_COLUMNS)
    assert found["realized"].to_list() == [0.5]


def test_a_writer_that_died_between_its_two_files_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    logged(folder, epochs=1)
    before = read_log(folder)
    (folder / "0001.candidates.arrow").touch()
    assert read_log(folder).equals(before)
    logged(folder, epochs=1)
    after = read_log(folder)
    assert after["run"].unique().sort().to_list() == [0, 2]
    assert after.filter(run=0).equals(before)


def test_a_full_disk_is_told_with_its_path_and_what_was_logged_is_whole(tmp_path: Path) -> None:
    """Real writes that fail: files may grow to so many bytes only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        with pytest.raises(
            RunError, match=r"0000\.candidates\.arrow: cannot be written: .*make room"
        ):
            logged(tmp_path / "log", epochs=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    logged(tmp_path / "whole", epochs=2)
    columns = ["window", "step", "batch", "position", "row", "influence", "value", "kept"]
    cut, whole = (read_log(tmp_path / name).select(columns) for name in ("log", "whole"))
    assert 0 < len(cut) < len(whole)
    assert cut.equals(whole[: len(cut)])
