"""The dataset card: a head that the Hub understands, the figures of the run, no active content."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from curate.output.card import card, markdown, size_category
from curate.output.saved_run import read_run
from curate.output.words import one_line, visible
from curate.recipe import load_recipe
from tests.output.made import HOSTILE, Page, made, recipe

MARKUP = [
    *HOSTILE,
    "a | b || c",
    "*bold* _it_ **x** ~~gone~~ `code` ``",
    "[text](https://example.org) ![picture](https://example.org/x.png) <https://example.org>",
    "# heading\n\n- item\n\n```\nfence",
    "back\\slash \\| &amp; &lt;b&gt; $x^2$",
    "````\n# out of the fence\n<img src=x>",
]


def rendered(text: str) -> Page:
    """The prose of a card as a reader of GitHub's Markdown sees it, raw HTML let through."""
    _, _, prose = text.removeprefix("---\n").partition("\n---\n")
    reader = MarkdownIt("commonmark").enable("table").enable("strikethrough")
    return Page(reader.render(prose))


def test_the_head_is_what_the_hub_accepts(finished: Path) -> None:
    head = DatasetCard.load(finished / "out" / "README.md").data.to_dict()
    assert head["size_categories"] == ["n<1K"]
    assert "curate" in head["tags"]
    assert "license" not in head  # nobody has said it
    (config,) = head["configs"]
    assert config["data_files"] == [{"split": "train", "path": "train/*.arrow"}]


def test_a_license_added_to_the_head_changes_nothing_else(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished / "out", tmp_path / "licensed"))
    path = out / "README.md"
    path.write_text(path.read_text().replace("---\n", "---\nlicense: cc-by-4.0\n", 1))
    assert DatasetCard.load(path).data.license == "cc-by-4.0"
    assert load_dataset(str(out), split="train").num_rows == 36


def test_figures_of_a_card_are_those_of_the_run(finished: Path) -> None:
    out = finished / "out"
    text = (out / "README.md").read_text()
    made = json.loads((out / "provenance.json").read_text())
    cells = rendered(text).texts["td"]
    assert "36 of 72 candidates" in text
    assert "36 of 72 kept (50%)" in cells
    for row in made["evaluation"]:
        mean, std = row["loss"]["mean"], row["loss"]["std"]
        assert cells[cells.index(row["trained_on"]) + 3] == f"{mean:.3f} ± {std:.3f}"
    assert any(f"AUROC of the score {made['noise']['auroc']:.3f}" in cell for cell in cells)
    assert any(f"{made['error']['probes']} removals followed exactly" in cell for cell in cells)
    source = cells[cells.index("rows.parquet") :][:3]
    described = made["sources"]["rows.parquet"]
    assert source == ["rows.parquet", str(described["rows"]), described["fingerprint"]]
    assert f"curate {made['versions']['curate']}" in text
    assert "arXiv:2605.18814" in text
    for path in out.iterdir():
        assert path.name in ("README.md", "dataset_dict.json") or path.name in text


def test_the_recipe_on_a_card_is_the_recipe(finished: Path, tmp_path: Path) -> None:
    code = rendered((finished / "out" / "README.md").read_text()).texts["code"]
    (block,) = [block for block in code if "epochs" in block]
    (tmp_path / "again.yaml").write_text(block)
    assert load_recipe(tmp_path / "again.yaml") == load_recipe(finished / "out" / "recipe.yaml")


def test_a_policy_without_influences_is_not_said_to_have_them(finished: Path) -> None:
    text = (finished / "loss" / "README.md").read_text()
    assert "chosen by loss." in text
    assert "arXiv" not in text
    assert "| `windows.parquet`" not in text


@pytest.mark.parametrize("hostile", MARKUP)
def test_what_comes_from_data_is_shown_and_does_nothing(tmp_path: Path, hostile: str) -> None:
    """Names of columns, sources, targets and ways of choosing, each in its place."""
    hostile = hostile.replace("\x00", "")  # which YAML cannot have
    name = visible(hostile)
    table = Dataset.from_dict({name: [1.0, 2.0, 3.0, 4.0], "label": [0, 1, 0, 1]})
    metric = {"mean": 0.5, "std": 0.1, "values": [0.4, 0.6]}
    rows: Any = [{"trained_on": hostile, "rows": 2, "noise_left": None, "loss": metric}]
    by = recipe(
        {"features": [name], "label": "label"},
        data={"train": hostile, "validation": {"good": name}},
    )
    sources = {hostile: {"rows": 4, "fingerprint": "0123"}}
    folder = made(tmp_path / "out", table, by, report=False, evaluation=rows, sources=sources)
    page = rendered(card(read_run(folder)))
    tags = {tag for tag, _ in page.tags}
    prose, cells = {"h1", "h2", "p", "a", "strong", "code", "pre"}, {"tr", "th", "td"}
    assert tags <= prose | cells | {"table", "thead", "tbody"}
    links = [link["href"] for link in page.all("a")]
    assert links == ["https://arxiv.org/abs/2605.18814", "#sources"]
    shown = one_line(visible(hostile))
    said = ["".join(page.texts[tag]) for tag in ("td", "h1")]
    assert said[0].count(shown) >= 3
    assert "Selected from" in said[1]
    widths = [len(line) for line in _rows_of(card(read_run(folder)))]
    assert set(widths) <= {2, 3}


def _rows_of(text: str) -> list[list[str]]:
    """Cells of every row of every table but the wide one of what was retrained."""
    _, _, prose = text.removeprefix("---\n").partition("\n---\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(prose)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "td_open" and rows:
            rows[-1].append("")
    return [row for row in rows if row]


@pytest.mark.parametrize("text", MARKUP)
def test_escaped_text_reads_as_it_was(text: str) -> None:
    page = Page(MarkdownIt("commonmark").enable("strikethrough").render(f"is {markdown(text)}."))
    assert {tag for tag, _ in page.tags} == {"p"}
    assert "".join(page.texts["p"]) == f"is {one_line(visible(text))}."


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        *[(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K")],
        *[(123_456, "100K<n<1M"), (10**7, "10M<n<100M"), (10**9, "1B<n<10B")],
        *[(5 * 10**11, "100B<n<1T"), (10**12, "n>1T")],
    ],
)
def test_size_categories(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_a_dataset_from_a_log_has_a_card(tmp_path: Path) -> None:
    table = Dataset.from_dict({"x": [1.0, 2.0, 3.0, 4.0]})
    folder = made(tmp_path / "out", table, None, sources={"train": "a dataset in memory"})
    text = (folder / "README.md").read_text()
    assert "# Selected from a dataset in memory" in text
    assert "| a dataset in memory |  |  |" in text
    assert "recipe.yaml" not in text
    assert pl.read_parquet(folder / "scores.parquet")["kept"].sum() == 2
