"""The command, as people run it: what it writes, what it says, how it refuses."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from datasets import load_dataset, load_from_disk

from curate.cli.main import cli, run
from curate.errors import RunError
from curate.recipe import load_recipe
from tests.job import RECIPE, curate, rows

EVALUATION = "evaluation={seeds: [0], against: [everything]}"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes, with its closing lines in `said`."""
    place = tmp_path_factory.mktemp("selected")
    rows().to_parquet(str(place / "rows.parquet"))
    (place / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch, (place / "said").open("w") as said:
        patch.chdir(place)
        with redirect_stdout(said):
            assert curate("recipe.yaml", "--out", "deep/er/out", "--set", EVALUATION) == 0
    return place / "deep" / "er" / "out"


def test_everything_written_agrees(out: Path) -> None:
    scores = pl.read_parquet(out / "scores.parquet")
    source = rows()
    on_disk = load_from_disk(str(out))["train"]
    loaded = load_dataset(str(out), split="train")
    (shard,) = (out / "train").glob("*.arrow")
    streamed = pl.read_ipc_stream(shard)

    assert len(scores) == 120 - 24 - 24
    assert scores["row"].is_unique().all()
    kept = scores.filter(pl.col("kept"))
    assert len(kept) == len(on_disk) == len(loaded) == len(streamed) == 36
    expected = source.select(kept["row"].to_list())
    for table in (on_disk, loaded):
        assert table["note"][:] == expected["note"][:]
        for name, feature in source.features.items():
            assert table.features[name] == feature
        assert table["x"][:] == expected["x"][:]
        assert table["label_clean"][:] == expected["label"][:]
    assert streamed["note"].to_list() == expected["note"][:]
    by_duckdb = duckdb.sql(f"select count(*) from '{out}/scores.parquet' where kept")
    assert by_duckdb.fetchall() == [(36,)]

    assert sorted(scores["rank"]) == list(range(1, 73))
    assert scores.filter(pl.col("rank") <= 36)["kept"].all()
    assert scores["seen"].to_list() == [2] * 72
    assert scores["influence"].is_finite().all()
    assert set(scores["reason"]) == {"top by score", "below the budget"}


def test_another_selection_under_the_same_name_is_not_taken_for_the_first(here: Path) -> None:
    """`load_dataset` caches by the directory's last name and its card."""
    for seed in ("0", "1"):
        options = ("--quiet", "--overwrite", "--set", f"data.seed={seed}")
        assert curate("recipe.yaml", "--out", "out", *options) == 0
        loaded = load_dataset(str(here / "out"), split="train")
        assert loaded["note"][:] == load_from_disk("out")["train"]["note"][:]


def test_the_exact_jump_from_a_recipe(here: Path) -> None:
    """The scores of one training differ, and little, from the linear ones."""
    influences = {}
    for jump in ("linear", "exact"):
        options = ("--out", jump, "--quiet", "--set", f"selection.jump={jump}")
        assert curate("recipe.yaml", *options) == 0
        influences[jump] = pl.read_parquet(here / jump / "scores.parquet")["influence"].to_numpy()
    assert not np.allclose(influences["linear"], influences["exact"], rtol=1e-3)
    assert np.corrcoef(influences["linear"], influences["exact"])[0, 1] > 0.9


def test_the_error_of_scores_from_a_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column, a table of windows, an entry of the summary; or none of them, and the same rows."""
    kept, summaries = {}, {}
    for probing in ("0.5", "0"):
        options = ("--json", "--set", f"selection.probing={probing}")
        assert curate("recipe.yaml", "--out", probing, *options) == 0
        summaries[probing] = json.loads(capsys.readouterr().out)
        kept[probing] = pl.read_parquet(f"{probing}/scores.parquet")
    probed, without = kept["0.5"], kept["0"]
    assert probed.drop("error").equals(without)
    assert (probed["error"] > 0).all()
    assert "error" not in pl.read_parquet("0/windows.parquet").columns
    assert "error" not in summaries["0"]
    windows = pl.read_parquet("0.5/windows.parquet")
    assert windows["first_step"].to_list() == [0, 4, 8]
    assert windows["steps"].to_list() == [4, 4, 2]
    assert windows["candidates"].sum() == kept["0"]["seen"].sum()
    error = summaries["0.5"]["error"]
    assert error["probes"] == windows["probes"].sum() > 0
    assert windows["signal"][0] > 0
    for name in ("signal", "error", "jump", "propagation"):
        expected = np.average(windows[name], weights=windows["candidates"])
        assert error[name] == pytest.approx(expected, rel=1e-12)
    provenance = json.loads(Path("0.5/provenance.json").read_text())
    assert provenance["error"] == error


def test_mixed_optimizers_from_a_recipe_and_again_from_what_it_wrote(here: Path) -> None:
    mixed = "training.optimizer.groups=[{match: ['*.weight'], kind: muon, lr: 0.02}]"
    options = ("--quiet", "--set", "selection.jump=exact")
    assert curate("recipe.yaml", "--out", "mixed", *options, "--set", mixed) == 0
    assert curate("mixed/recipe.yaml", "--out", "again", "--quiet") == 0
    assert curate("recipe.yaml", "--out", "plain", *options) == 0
    first, again, plain = (
        pl.read_parquet(f"{out}/scores.parquet") for out in ("mixed", "again", "plain")
    )
    assert first.equals(again)
    assert first["influence"].is_finite().all()
    assert not np.allclose(first["influence"], plain["influence"], rtol=0.1)


def test_directory_has_what_the_card_says_and_nothing_else(out: Path) -> None:
    tables = {"scores.parquet", "windows.parquet", "dropped.parquet"}
    texts = {"README.md", "report.html", "recipe.yaml", "provenance.json", "dataset_dict.json"}
    assert {path.name for path in out.iterdir()} == tables | texts | {"train"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    made = json.loads((out / "provenance.json").read_text())
    assert made["kept"] == 36
    assert made["versions"]["torch"]
    assert made["sources"]["rows.parquet"]["rows"] == 120
    assert "36 of 72 candidates" in (out / "README.md").read_text()


def test_resolved_recipe_gives_the_same_result(here: Path) -> None:
    assert curate("recipe.yaml", "--out", "a", "--quiet", "--set", "selection.horizon=3") == 0
    assert load_recipe("a/recipe.yaml").selection.horizon == 3
    assert curate("a/recipe.yaml", "--out", "b", "--quiet") == 0
    assert pl.read_parquet("a/scores.parquet").equals(pl.read_parquet("b/scores.parquet"))
    assert Path("a/recipe.yaml").read_text() == Path("b/recipe.yaml").read_text()


@pytest.mark.parametrize("policy", ["look_ahead", "random", "loss", "knn_shapley"])
@pytest.mark.parametrize("horizon", ["1", "7", "full"])
def test_every_policy_at_every_horizon(here: Path, policy: str, horizon: str) -> None:
    settings = [f"selection.policy={policy}", f"selection.horizon={horizon}"]
    arguments = [part for s in settings for part in ("--set", s)]
    assert curate("recipe.yaml", "--out", "out", "--quiet", *arguments) == 0
    scores = pl.read_parquet("out/scores.parquet")
    assert scores["kept"].sum() == 36
    assert (scores["influence"].null_count() == 0) == (policy == "look_ahead")


def test_summary_as_json_with_evaluation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = "evaluation={seeds: [0, 1], against: [everything, random, loss, knn_shapley]}"
    assert curate("recipe.yaml", "--out", "out", "--json", "--set", evaluation) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["candidates"] == 72
    assert summary["noise"]["planted"] == 14
    assert 0 <= summary["noise"]["auroc"] <= 1
    table = {row["trained_on"]: row for row in summary["evaluation"]}
    assert set(table) == {"look_ahead", "everything", "random", "loss", "knn_shapley"}
    assert table["everything"]["rows"] == 72
    assert table["random"]["rows"] == 36
    assert len(table["random"]["loss"]["values"]) == 2


def test_closing_lines(out: Path) -> None:
    text = (out.parents[2] / "said").read_text()
    for part in (
        "rows: 36 of 72 kept (50%)",
        "run: look_ahead (10 steps, cpu)",
        "of 14 wrong labels kept",
        "wrote deep/er/out",
        "test loss",
        "everything",
        "score (look_ahead)",
        "write ",
    ):
        assert part in text


def test_quota_by_any_column_and_two_targets(here: Path) -> None:
    rows(30).to_json("more.jsonl")
    targets = "data.validation={near: more.jsonl, far: {path: rows.parquet}}"
    settings = ("--set", "selection.group_by=group", "--set", targets)
    assert curate("recipe.yaml", "--out", "out", "--quiet", *settings) == 0
    scores = pl.read_parquet("out/scores.parquet")
    groups = [i % 3 for i in scores["row"]]
    share = (
        scores.with_columns(group=pl.Series(groups)).group_by("group").agg(pl.col("kept").mean())
    )
    assert share["kept"].min() > 0.45
    assert share["kept"].max() < 0.55
    both = (scores["influence/near"] + scores["influence/far"]) / 2
    np.testing.assert_allclose(scores["influence"], both, rtol=1e-12)


def test_regression_with_a_custom_model_and_objective(here: Path) -> None:
    data = rows()
    data = data.remove_columns("label").add_column("y", [sum(r) for r in data["x"]])
    data.to_parquet("numbers.parquet")
    Path("mine_for_cli.py").write_text(
        "import torch\n"
        "def net(width): return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(),"
        " torch.nn.Linear(width, 1))\n"
        "def huber(model, batch): return torch.nn.functional.huber_loss("
        "model(batch['features'])[:, 0], batch['label'], reduction='none')\n"
    )
    Path("r.yaml").write_text(
        "data: {train: numbers.parquet, columns: {features: x, label: y}, "
        "validation: {fraction: 0.2}, test: {fraction: 0.2}}\n"
        "model: {factory: 'mine_for_cli:net', arguments: {width: 6}}\n"
        "objective: regression\n"
        "training: {optimizer: {kind: sgd, lr: 0.01, momentum: 0.9}, clip_norm: 1.0,"
        " micro_batch: 5}\n"
        "evaluation: {seeds: [0], against: [everything]}\n"
    )
    assert curate("r.yaml", "--out", "a", "--quiet") == 0
    assert curate("r.yaml", "--out", "b", "--quiet", "--set", "objective=mine_for_cli:huber") == 0
    a, b = (pl.read_parquet(f"{d}/scores.parquet")["influence"] for d in "ab")
    assert not np.allclose(a, b)


def test_existing_directories_are_safe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = Path("precious")
    precious.mkdir()
    (precious / "file").write_text("mine")
    assert curate("recipe.yaml", "--out", "precious") == 2
    assert "exists already" in capsys.readouterr().err
    assert curate("recipe.yaml", "--out", "precious", "--overwrite") == 2
    assert "was not written by curate" in capsys.readouterr().err
    assert (precious / "file").read_text() == "mine"

    assert curate("recipe.yaml", "--out", "out", "--quiet") == 0
    assert curate("recipe.yaml", "--out", "out", "--quiet") == 2
    assert curate("recipe.yaml", "--out", "out", "--quiet", "--overwrite") == 0
    assert load_from_disk("out")["train"].num_rows == 36


def test_a_run_that_blows_up_says_where_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    optimizer = "training.optimizer={kind: sgd, lr: 1e6, momentum: 0.9}"
    assert curate("recipe.yaml", "--out", "out", "--set", optimizer) == 1
    message = capsys.readouterr().err
    assert "lower the learning rate" in message
    assert message.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_a_failure_of_torch_is_one_line_and_its_traceback_on_request(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import curate.pipeline.select as jobs

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(jobs, "choose", out_of_memory)
    assert curate("recipe.yaml", "--out", "out") == 1
    message = "curate: the run failed with RuntimeError: out of memory (CURATE_TRACEBACK=1"
    captured = capsys.readouterr().err
    assert captured.startswith(message)
    assert captured.count("\n") == 1
    monkeypatch.setenv("CURATE_TRACEBACK", "1")
    assert curate("recipe.yaml", "--out", "out") == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_before_anything_is_known_is_130_and_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import curate.pipeline.select as jobs

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "choose", interrupted)
    before = sorted(here.iterdir())
    assert curate("recipe.yaml", "--out", "out", "--quiet") == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


FULL = ("--quiet", "--set", "selection.horizon=full")
DISK = (*FULL, "--set", "trajectory={snapshots: 1, disk: 1MiB}")


def test_snapshots_on_disk_from_a_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is unfinished, beside the output; the same scores; nothing left of them."""
    from curate.trajectory import snapshots

    places = set()
    save = snapshots.safetensors.torch.save_file

    def note(tensors: Any, path: Path, *metadata: Any) -> None:
        if not metadata:  # else it is a savepoint
            places.add(path.parent.parent)
        save(tensors, path, *metadata)

    monkeypatch.setattr(snapshots.safetensors.torch, "save_file", note)
    assert curate("recipe.yaml", "--out", "deep/disk", *DISK) == 0
    assert places == {here / "deep" / ".disk.unfinished"}
    assert curate("recipe.yaml", "--out", "memory", *FULL) == 0
    on_disk, in_memory = (
        pl.read_parquet(f"{out}/scores.parquet") for out in ("deep/disk", "memory")
    )
    assert on_disk.equals(in_memory)
    left = sorted(p.name for p in here.iterdir())
    assert left == ["deep", "memory", "recipe.yaml", "rows.parquet"]
    assert [p.name for p in Path("deep").iterdir()] == ["disk"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RunError("a wall")], ids=["Ctrl-C", "error"]
)
def test_no_snapshot_is_left_of_a_run_that_ended_early(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    import curate.influence.window as window

    before = sorted(here.iterdir())

    def fail(*_: Any, **__: Any) -> None:
        assert list(here.glob(".out.unfinished/.curate-snapshots-*/*.safetensors"))
        raise error

    monkeypatch.setattr(window, "backward_step", fail)
    code = curate("recipe.yaml", "--out", "out", *DISK)
    assert code == (1 if isinstance(error, RunError) else 130)
    error.__traceback__ = None  # which holds on to the recording
    assert sorted(here.iterdir()) == before


def test_a_full_disk_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from curate.trajectory import snapshots

    def full(*_: Any) -> None:
        raise snapshots.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(snapshots.safetensors.torch, "save_file", full)
    before = sorted(here.iterdir())
    assert curate("recipe.yaml", "--out", "out", *DISK) == 1
    message = capsys.readouterr().err
    assert message.startswith("curate: trajectory.disk: the state before step 1, 0.0 MiB, cannot")
    assert "No space left on device" in message
    assert message.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_usage_mistakes_are_exit_code_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["select"]) == 2
    assert run(cli, ["select", "recipe.yaml", "--device", "tpu"]) == 2
    assert run(cli, ["choose"]) == 2
    assert run(cli, ["select", "nowhere.yaml"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from curate.cli.main import cli, run\n"
        "assert all(run(cli, [*c, '--help']) == 0 for c in ([], ['select'], ['verify']))\n"
        "heavy = {'torch', 'datasets', 'polars', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Score the rows" in done.stdout


def test_recipes_load_no_torch() -> None:
    code = "import sys, curate.recipe; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_as_a_module(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "curate", "select", "nowhere.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("curate: nowhere.yaml: cannot read the recipe")
