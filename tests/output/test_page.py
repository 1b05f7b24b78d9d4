"""The report: what it says, what it lets through, and how large it gets."""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import polars as pl
from datasets import Dataset

from curate.cli.main import cli, run
from curate.output import figures
from curate.output.page import write_report
from curate.output.saved_run import LISTED
from tests.output.made import HOSTILE, ON_TEXT, Page, listing, made, recipe, texts

STYLE = Path(figures.__file__).parent / "templates" / "style.css"


def test_the_report_has_the_numbers_of_the_run(finished: Path) -> None:
    text = (finished / "out" / "report.html").read_text()
    page, scores = Page(text), pl.read_parquet(finished / "out" / "scores.parquet")
    names = {figure["id"] for figure in page.all("figure")}
    assert names == {"retrained", "course", "scores", "influence", "promises"}
    assert "36 of 72 kept (50%)" in text
    assert "14 wrong labels" in text
    rows = listing(text)
    assert [row["row"] for row in rows] == scores.sort("rank")["row"].to_list()
    assert [row["kept"] for row in rows] == scores.sort("rank")["kept"].to_list()
    source = pl.read_parquet(finished / "rows.parquet")
    for row in (rows[0], rows[-1]):
        shown = dict(row["columns"])
        assert shown["note"] == source["note"][row["row"]]
        assert shown.get("right label", row["label"]) == source["label"][row["row"]]
    provenance = json.loads((finished / "out" / "provenance.json").read_text())
    parts = provenance["composition"]["label"]
    assert sum(part["kept"] for part in parts) == 36
    assert sum(part["candidates"] for part in parts) == 72
    mean = provenance["evaluation"][0]["loss"]["mean"]
    assert any(cell.startswith(f"{mean:.3f} ±") for cell in page.texts["td"])
    windows = pl.read_parquet(finished / "out" / "windows.parquet").drop_nulls("realized")
    assert any(str(i["alt"]).startswith(f"{len(windows)} windows:") for i in page.all("img"))


def test_written_again_it_is_the_same_wherever_the_directory_is(
    finished: Path, tmp_path: Path
) -> None:
    before = (finished / "out" / "report.html").read_bytes()
    elsewhere = Path(shutil.copytree(finished / "out", tmp_path / "elsewhere"))
    (elsewhere / "report.html").unlink()
    assert run(cli, ["report", str(elsewhere)]) == 0
    assert (elsewhere / "report.html").read_bytes() == before


def test_whatever_the_data_says_stays_text(tmp_path: Path) -> None:
    by = recipe({"text": "text"}, data={"train": "<i>rows</i>.parquet"})
    text = (made(tmp_path / "run", texts(), by) / "report.html").read_text()
    page = Page(text)
    assert len(page.all("script")) == 2
    assert not {"i", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all((image["src"] or "").startswith("data:") for image in page.all("img"))
    assert not set("\u2028\u2029\u202e\x1b\x00") & set(text)
    shown = [dict(row["columns"])["text"] for row in listing(text)]
    assert shown[:4] == HOSTILE[:4]
    assert shown[4] == r"line\u2028separator\u2029 \x1b[31mred \u202eright to left \x00"
    assert shown[5] == HOSTILE[5]
    cards = "".join(page.texts["bdi"])
    assert all(text in cards for text in [*HOSTILE[:4], *HOSTILE[5:]])
    assert "<i>rows</i>.parquet" in page.texts["h1"]


def test_nothing_may_be_asked_for_and_only_its_own_script_may_run(on_text: Path) -> None:
    page = Page((on_text / "report.html").read_text())
    (policy,) = (m["content"] for m in page.all("meta") if "Content-Security" in str(m))
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["script-src"].startswith("'sha256-")
    assert "unsafe" not in policy
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    assert all((link["href"] or "").startswith("#") for link in page.all("a"))


def test_figures_say_what_they_show(on_text: Path) -> None:
    page = Page((on_text / "report.html").read_text())
    assert len(page.drawings()) == 4
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell.get("scope") for cell in page.all("th"))


def test_figures_have_the_colors_of_the_page() -> None:
    light = dict(re.findall(r"--(\w+): (#\w{6})", STYLE.read_text().split("}")[0]))
    assert (light["accent"], light["other"]) == (figures.KEPT, figures.DROPPED)
    assert light["quiet"] == figures.QUIET
    drawn = set(re.findall(r"\w{6}$", figures.STYLE.read_text(), re.M))
    assert {light[name][1:] for name in ("paper", "line", "quiet")} <= drawn


def test_colors_can_be_told_apart() -> None:
    """Contrast of every color of text with what it stands on, as WCAG 2 counts it: 4.5."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    palettes = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    assert len(palettes) == 2
    for palette in palettes:
        colors = dict(re.findall(r"--(\w+): (#\w{6})", palette))
        for text in ("ink", "quiet", "accent"):
            for ground in ("paper", "panel"):
                pair = sorted(luminance(colors[name]) for name in (text, ground))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, ground)


def test_a_long_table_is_capped_and_says_so(tmp_path: Path) -> None:
    count = 6000
    table = Dataset.from_dict({"text": ["some words of a text " * 60] * count})
    folder = made(tmp_path / "run", table, ON_TEXT)
    text = (folder / "report.html").read_text()
    rows = listing(text)
    assert len(rows) == LISTED
    assert "1,500 of 6,000 rows" in text
    assert "2,2" in text.split("dropped rows have their scores here but not their content")[0][-12:]
    assert len(text) < 3e6
    ranks = [row["rank"] for row in rows]
    assert ranks == sorted(ranks)
    for wanted in (1, 2, 3000, 3001, 5999, 6000):
        assert wanted in ranks
    gaps = np.diff(ranks)
    assert gaps.max() <= 13
    assert "1,260 characters" not in text
    assert all(len(dict(row["columns"])["text"]) < 760 for row in rows)
    assert "more characters" in dict(rows[0]["columns"])["text"]


def test_pictures_in_files_are_stored_with_the_dropped_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(8):
        pixels = random.integers(0, 255, (300, 200, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    table = Dataset.from_dict({"image": paths, "label": [0, 1] * 4}, features=features)
    folder = made(tmp_path / "run", table, recipe({"features": ["image"], "label": "label"}))
    for path in paths:
        Path(path).unlink()
    text = write_report(folder).read_text()
    page = Page(text)
    pictures = [image for image in page.all("img") if image not in page.drawings()]
    assert len(pictures) == 8 + 8  # the most helpful and the borderline, no others being left
    assert all(image["alt"] == "image: 200 × 300, color" for image in pictures)
    assert len(text) < 450_000
    assert all(row["picture"].startswith("data:image/") for row in listing(text))


def test_what_a_training_loop_kept_has_a_report_without_a_recipe(tmp_path: Path) -> None:
    text = (made(tmp_path / "run", texts(), None) / "report.html").read_text()
    assert "no recipe made this directory" in text
    assert [dict(row["columns"])["text"] for row in listing(text)][:4] == HOSTILE[:4]


def test_a_policy_without_influences_says_so(finished: Path) -> None:
    text = (finished / "loss" / "report.html").read_text()
    assert "loss has none" in text
    assert {figure["id"] for figure in Page(text).all("figure")} == {"scores"}
    assert all(row["influence"] is None for row in listing(text))


def test_templates_are_in_what_is_installed() -> None:
    """Every template, by the globs of pyproject.toml."""
    import tomllib

    root = Path(figures.__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]["curate"]
    packaged = {path for glob in globs for path in (root / "curate").glob(glob)}
    others = {
        p
        for p in (root / "curate").rglob("*")
        if p.is_file() and p.suffix not in (".py", ".pyc") and p.name != "README.md"
    }
    assert others <= packaged
