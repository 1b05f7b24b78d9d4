"""Labels of the candidates: noise that is planted, corrections that are made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from curate.errors import DataError
from curate.pipeline.candidates import Candidates, read_candidates
from curate.recipe import check_recipe
from curate.recipe.load import parse
from tests.job import RECIPE, rows


def read(*overrides: str) -> Candidates:
    return read_candidates(check_recipe(parse(RECIPE), overrides))


def test_noise_is_in_the_labels_of_candidates_and_nowhere_else(here: Path) -> None:
    noisy, clean = read(), read("data.label_noise=null")
    assert noisy.noisy is not None
    assert int(noisy.noisy.sum()) == round(0.2 * 72)
    assert torch.equal(noisy.examples.labels != clean.examples.labels, noisy.noisy)
    target, other = noisy.validation["validation"], clean.validation["validation"]
    assert torch.equal(target.labels, other.labels)
    assert clean.noisy is None


def test_corrections_are_of_candidates_and_of_nobody_else(here: Path) -> None:
    noisy = read()
    wrong = noisy.examples.rows[noisy.noisy].tolist()
    clean = dict(enumerate(rows()["label"]))
    fixed = {"row": wrong[:5], "label": [clean[row] for row in wrong[:5]]}
    Dataset.from_dict(fixed).to_csv("fixed.csv")
    found = read("data.relabelled=fixed.csv")
    assert found.relabelled == {"file": "fixed.csv", "rows": 5, "changed": 5}
    assert found.sources["fixed.csv"]["rows"] == 5
    assert torch.equal(found.formerly, noisy.examples.labels)
    assert int(found.noisy.sum()) == int(noisy.noisy.sum()) - 5
    changed = found.examples.rows[found.examples.labels != noisy.examples.labels]
    assert changed.tolist() == wrong[:5] == fixed["row"]
    names = dict(zip(found.examples.rows.tolist(), found.table["label"], strict=True))
    assert all(names[row] == clean[row] for row in wrong[:5])
    some = np.flatnonzero((found.examples.labels != noisy.examples.labels).numpy())
    assert torch.equal(found.only(some).formerly, noisy.examples.labels[torch.from_numpy(some)])
    held = int(noisy.validation["validation"].rows[0])
    for row in (held, 500):
        Dataset.from_dict({"row": [row], "label": ["up"]}).to_csv("other.csv")
        with pytest.raises(DataError, match=rf"other.csv: row {row} is none of the 72 candidates"):
            read("data.relabelled=other.csv")
