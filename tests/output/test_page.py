"""The report: what it says, what it lets through, and what a browser makes of it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import polars as pl
import pytest
from datasets import Dataset

from curate.cli.main import cli, run
from curate.output import figures
from curate.output import saved_run as runs
from curate.output.page import render, write_report
from curate.output.saved_run import listed, read_run
from tests.browser import CHROMIUM, Browser
from tests.job import curate
from tests.output.made import made, recipe

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</script><script>document.title = 'owned'</script>",
    "<!--<script>",
    '"><img src="https://example.org/x" onerror="document.title = 1">',
    "line\u2028separator\u2029 \x1b[31mred \u202eright to left \x00",
    "{{ 7 * 7 }}{% raw %}",
    "<b>bold</b> &lt; &amp;",
]
ON_TEXT = recipe({"text": "text"})


class Page(HTMLParser):
    """Elements of a page, and the text in each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open[: len(self._open) - 1 - self._open[::-1].index(tag)]

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def listing(text: str) -> list[dict[str, Any]]:
    """The rows of the table."""
    found = re.search(r'<script type="application/json" id="rows-data">(.*?)</script>', text, re.S)
    assert found is not None
    rows: list[dict[str, Any]] = json.loads(found[1])["rows"]
    return rows


def texts(count: int = 12) -> Dataset:
    own = [HOSTILE[i] if i < len(HOSTILE) else f"text number {i}" for i in range(count)]
    return Dataset.from_dict({"text": own, "where": [HOSTILE[i % 2] for i in range(count)]})


def test_the_report_has_the_numbers_of_the_run(here: Path) -> None:
    evaluation = "evaluation={seeds: [0, 1], against: [everything, random]}"
    assert curate("recipe.yaml", "--out", "out", "--quiet", "--set", evaluation) == 0
    text = Path("out/report.html").read_text()
    page, scores = Page(text), pl.read_parquet("out/scores.parquet")
    names = {own["id"] for own in page.all("figure")}
    assert names == {"retrained", "course", "scores", "influence", "promises"}
    assert "36 of 72 kept (50%)" in text
    assert "14 wrong labels" in text
    rows = listing(text)
    assert [row["row"] for row in rows] == scores.sort("rank")["row"].to_list()
    assert [row["kept"] for row in rows] == scores.sort("rank")["kept"].to_list()
    source = datasets.load_dataset("parquet", data_files="rows.parquet", split="train")
    for row in (rows[0], rows[-1]):
        shown = dict(row["columns"])
        assert shown["note"] == source["note"][row["row"]]
        assert shown.get("right label", row["label"]) == source["label"][row["row"]]
    provenance = json.loads(Path("out/provenance.json").read_text())
    parts = provenance["composition"]["label"]
    assert sum(part["kept"] for part in parts) == 36
    assert sum(part["candidates"] for part in parts) == 72
    mean = provenance["evaluation"][0]["loss"]["mean"]
    assert any(cell.startswith(f"{mean:.3f} ±") for cell in page.texts["td"])
    windows = pl.read_parquet("out/windows.parquet").drop_nulls("realised")
    assert any(str(own["alt"]).startswith(f"{len(windows)} windows:") for own in page.all("img"))


def test_written_again_it_is_the_same_wherever_the_directory_is(here: Path) -> None:
    assert curate("recipe.yaml", "--out", "out", "--quiet") == 0
    before = Path("out/report.html").read_bytes()
    shutil.move("out", "elsewhere")
    Path("rows.parquet").unlink()
    Path("elsewhere/report.html").unlink()
    assert run(cli, ["report", "elsewhere"]) == 0
    assert Path("elsewhere/report.html").read_bytes() == before


def test_a_verification_is_in_the_report(tmp_path: Path) -> None:
    made(tmp_path / "run", texts(), ON_TEXT)
    assert "Not run on this directory" in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "verify.json").write_text('{"examples": 64, "verdict": "trustworthy: x."}')
    text = write_report(tmp_path / "run").read_text()
    assert "trustworthy: x. (64 rows left out)" in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (1e-4, "To be trusted: size and order"),
        (5e-4, "signs and order more than for sizes"),
        (9e-4, "Not to be trusted: bring features to one scale"),
        (None, "Not estimated"),
    ],
)
def test_trust_is_said_in_words(tmp_path: Path, error: float | None, words: str) -> None:
    found = {"probes": 9, "signal": 1e-3, "error": error, "jump": 0.0, "propagation": 0.0}
    known = {} if error is None else {"error": found}
    made(tmp_path / "run", texts(), ON_TEXT, **known)
    assert words in (tmp_path / "run" / "report.html").read_text()


def test_whatever_the_data_says_stays_text(tmp_path: Path) -> None:
    by = recipe({"text": "text"}, data={"train": "<i>rows</i>.parquet"})
    text = (made(tmp_path / "run", texts(), by) / "report.html").read_text()
    page = Page(text)
    assert len(page.all("script")) == 2
    assert not {"i", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all((own["src"] or "").startswith("data:") for own in page.all("img"))
    assert not set("\u2028\u2029\u202e\x1b\x00") & set(text)
    shown = [dict(row["columns"])["text"] for row in listing(text)]
    assert shown[:4] == HOSTILE[:4]
    assert shown[4] == r"line\u2028separator\u2029 \x1b[31mred \u202eright to left \x00"
    assert shown[5] == HOSTILE[5]
    cards = "".join(page.texts["bdi"])
    assert all(own in cards for own in [*HOSTILE[:4], *HOSTILE[5:]])
    assert "<i>rows</i>.parquet" in page.texts["h1"]


def test_nothing_may_be_asked_for_and_only_its_own_script_may_run(tmp_path: Path) -> None:
    page = Page((made(tmp_path / "run", texts(), ON_TEXT) / "report.html").read_text())
    (policy,) = (m["content"] for m in page.all("meta") if "Content-Security" in str(m))
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["script-src"].startswith("'sha256-")
    assert "unsafe" not in policy
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    assert all((own["href"] or "").startswith("#") for own in page.all("a"))


def drawings(page: Page) -> list[dict[str, str | None]]:
    """The figures, other than pictures of rows."""
    return [own for own in page.all("img") if str(own["src"]).startswith("data:image/svg+xml;")]


def test_figures_say_what_they_show(tmp_path: Path) -> None:
    text = (made(tmp_path / "run", texts(), ON_TEXT) / "report.html").read_text()
    page = Page(text)
    assert len(drawings(page)) == 4
    assert all(own["alt"] for own in page.all("img"))
    assert all(own.get("scope") for own in page.all("th"))


def test_figures_have_the_colors_of_the_page() -> None:
    style = (Path(figures.__file__).parent / "templates" / "style.css").read_text()
    light = dict(re.findall(r"--(\w+): (#\w{6})", style.split("}")[0]))
    assert light["paper"] == figures.PAPER
    assert light["line"] == figures.LINE
    assert light["quiet"] == figures.QUIET
    assert light["accent"] == figures.KEPT
    assert light["other"] == figures.DROPPED


def test_colors_can_be_told_apart(tmp_path: Path) -> None:
    """Contrast of every color of text with what it stands on, as WCAG 2 counts it: 4.5."""
    style = "".join(Page((made(tmp_path / "run", texts(), ON_TEXT) / "report.html").read_text())
                    .texts["style"])  # fmt: skip

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    palettes = re.findall(r":root \{(.*?)\}", style, re.S)
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
    assert len(rows) == runs.LISTED
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


@pytest.mark.parametrize("count", [1, 2, 5, 1500, 1501, 4000])
@pytest.mark.parametrize("keep", [0, 0.5, 1])
def test_what_is_listed_is_in_order_and_without_repetition(count: int, keep: float) -> None:
    scores = pl.DataFrame({"row": range(count), "kept": [i < keep * count for i in range(count)]})
    rows = listed(scores)
    assert rows == sorted(set(rows))
    assert len(rows) == min(count, runs.LISTED)


def test_dropped_rows_are_stored_up_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "STORED_BYTES", 60_000)
    table = Dataset.from_dict({"text": ["x" * 1000] * 1200, "row": ["id"] * 1200})
    run_ = read_run(made(tmp_path / "run", table, ON_TEXT))
    assert run_.dropped is not None
    assert len(run_.dropped) == runs.AT_A_TIME  # at least so many
    assert run_.dropped_rows == list(range(1210 - runs.AT_A_TIME, 1210))  # the worst
    assert run_.content(1209) == {"text": "x" * 1000, "row": "id"}
    assert run_.content(610) is None
    assert "Its content is not stored here" in render(run_)  # of borderline rows
    by_name = pl.read_parquet(tmp_path / "run" / "dropped.parquet")
    assert by_name["_row"].to_list() == run_.dropped_rows


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
    pictures = [own for own in page.all("img") if own not in drawings(page)]
    assert len(pictures) == 8 + 8  # the most helpful and the borderline, no others being left
    assert all(own["alt"] == "image: 200 × 300, color" for own in pictures)
    assert len(text) < 450_000
    assert all(row["picture"].startswith("data:image/") for row in listing(text))


def test_what_a_training_loop_kept_has_a_report_without_a_recipe(tmp_path: Path) -> None:
    text = (made(tmp_path / "run", texts(), None) / "report.html").read_text()
    assert "no recipe made this directory" in text
    assert [dict(row["columns"])["text"] for row in listing(text)][:4] == HOSTILE[:4]


def test_a_policy_without_influences_says_so(here: Path) -> None:
    assert curate("recipe.yaml", "--out", "out", "--quiet", "--set", "selection.policy=loss") == 0
    text = Path("out/report.html").read_text()
    assert "loss has none" in text
    assert {own["id"] for own in Page(text).all("figure")} == {"scores"}
    assert all(row["influence"] is None for row in listing(text))


def test_templates_are_in_what_is_installed() -> None:
    """Every template, by the globs of pyproject.toml."""
    import tomllib

    root = Path(runs.__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]["curate"]
    packaged = {path for glob in globs for path in (root / "curate").glob(glob)}
    others = {
        p for p in (root / "curate").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")
    }
    assert others <= packaged


@pytest.fixture(scope="module")
def browser() -> Any:
    if CHROMIUM is None:
        pytest.skip("there is no chromium to look at the report with")
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = Dataset.from_dict(
        {
            "text": [HOSTILE[i] if i < len(HOSTILE) else f"text number {i}" for i in range(200)],
            "label": [f"l{i % 3}" for i in range(200)],
        }
    )
    by = recipe({"text": "text", "label": "label"}, objective="sequence_classification")
    return made(tmp_path_factory.mktemp("report") / "run", table, by)


def shown_rows(browser: Browser) -> list[int]:
    found = browser.run(
        "[...document.querySelectorAll('#rows tr[data-row]')].map(r => r.dataset.row)"
    )
    return [int(row) for row in found]


def test_it_asks_for_nothing_and_nothing_goes_wrong(browser: Browser, folder: Path) -> None:
    browser.requests.clear(), browser.errors.clear()
    for dark in (False, True):
        browser.dark(dark)
        browser.open(folder / "report.html", f"?{dark}#row=10,11,12,13,14")
        assert browser.run("document.title") == "rows.parquet – selected by curate"
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in browser.requests) == 2
    assert browser.errors == []
    opened = browser.run("document.querySelector('#rows .opened dd').textContent")
    assert opened == HOSTILE[0]


def test_the_policy_of_the_page_stops_what_gets_in(browser: Browser, folder: Path) -> None:
    """Were something not escaped, it would neither run nor ask anybody."""
    text = (folder / "report.html").read_text()
    bad = '<script>document.title = "owned"</script><img src="https://127.0.0.1:9/x.png">'
    (folder / "bad.html").write_text(text.replace("<main>", "<main>" + bad))
    browser.open(folder / "bad.html")
    assert browser.run("document.title") == "rows.parquet – selected by curate"
    assert sum("Content Security Policy" in error for error in browser.errors) == 2
    browser.errors.clear()


def test_rows_are_filtered(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html")
    assert shown_rows(browser) == list(range(10, 60))
    assert browser.run("document.getElementById('found').textContent") == "200 of 200 rows"
    browser.run("document.getElementById('q').focus()")
    browser.type("NUMBER 19")
    # every word, in any column or the row's number
    expected = [
        row for row in range(10 + len(HOSTILE), 210) if "19" in f"{row} text number {row - 10}"
    ]
    found = f"{len(expected)} of 200 rows"
    browser.until(f"document.getElementById('found').textContent === '{found}'")
    assert shown_rows(browser) == expected
    browser.run(
        "for (const [id, value] of [['is', 'dropped'], ['label', 'l1']]) {"
        " const field = document.getElementById(id); field.value = value;"
        " field.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    fewer = [row for row in expected if row >= 110 and (row - 10) % 3 == 1]
    assert shown_rows(browser) == fewer != []
    address = browser.run("location.hash")
    assert address == "#q=NUMBER+19&is=dropped&label=l1"
    browser.open(folder / "report.html", "?again" + address)  # a link to what is seen
    assert shown_rows(browser) == fewer
    assert browser.run("document.getElementById('q').value") == "NUMBER 19"


def test_a_row_is_opened_by_keyboard(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", "?key")
    browser.run("document.querySelector('#rows tr[data-row=\"17\"] button').focus()")
    browser.press("Enter", 13)
    browser.until("document.querySelector('#rows .opened') !== null")
    opened = browser.run("document.querySelector('#rows .opened').innerText")
    assert "text number 7" in opened
    assert "kept, top by score: rank 8 of 200" in opened
    focused = "document.activeElement.getAttribute('aria-expanded')"
    assert browser.run(focused) == "true"
    browser.press("Enter", 13)
    browser.until("document.querySelector('#rows .opened') === null")
    assert browser.run(focused) == "false"


def test_columns_are_sorted(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", "?sort")
    head = "document.querySelector('#rows th[data-key=influence]')"
    for order, first in (("descending", 10), ("ascending", 209)):
        browser.run(f"{head}.querySelector('button').click()")
        assert browser.run(f"{head}.getAttribute('aria-sort')") == order
        assert shown_rows(browser)[0] == first
    browser.run("document.getElementById('more').click()")
    assert shown_rows(browser) == list(range(209, 9, -1))
    assert browser.run("document.getElementById('more').hidden")


def test_a_card_leads_to_its_row(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", "?card")
    browser.run("document.querySelector('.card a[href=\"#row=209\"]').click()")
    browser.until("document.querySelector('#rows .opened') !== null")
    assert browser.run("document.activeElement.closest('tr').dataset.row") == "209"


@pytest.mark.parametrize("width", [390, 320])
def test_it_fits_on_a_phone(browser: Browser, folder: Path, width: int) -> None:
    browser.resize(width, 800, phone=True)
    browser.open(folder / "report.html", "?phone")
    assert browser.run("document.documentElement.scrollWidth") == width
    browser.resize(1280, 900)
