"""`Scorer` in Ray Data: two workers give the rows what one process gives them."""

import os
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate import Scorer
from curate.pipeline.select import run_select
from curate.recipe import load_recipe
from tests.job import RECIPE, rows
from tests.pipeline.test_scorer import ADDED, SAMPLED

ray = pytest.importorskip("ray", reason="pip install 'curate[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of which Ray has many, about itself


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A local Ray of 4 CPUs, two for workers; the others read."""
    environment = {"PYTHONPATH": os.getcwd(), "CUDA_VISIBLE_DEVICES": ""}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    yield ray
    ray.shutdown()


def test_two_workers_give_the_same_rows_as_one_process(cluster: Any, tmp_path: Path) -> None:
    with chdir(tmp_path):
        rows(200).to_parquet("rows.parquet")
        Path("recipe.yaml").write_text(RECIPE)
        run_select(load_recipe("recipe.yaml", SAMPLED), Path("kept"))
    more = pl.DataFrame(rows(1000)[:]).with_row_index("row")
    for part in range(8):
        more[part * 125 : (part + 1) * 125].write_parquet(tmp_path / f"{part}.parquet")
    files = [str(tmp_path / f"{part}.parquet") for part in range(8)]
    scored = ray.data.read_parquet(files).map_batches(
        Scorer,
        fn_constructor_args=(str(tmp_path / "kept"),),
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_format="pyarrow",
    )
    scored.write_parquet(str(tmp_path / "scored"))
    found = pl.read_parquet(tmp_path / "scored/*.parquet").sort("row")
    alone = Scorer(tmp_path / "kept")(more)
    assert found.drop(*ADDED).equals(alone.drop(*ADDED))
    assert found["kept"].equals(alone["kept"])
    for name in ("score", "low", "high"):
        assert (found[name] - alone[name]).abs().max() < 1e-5
