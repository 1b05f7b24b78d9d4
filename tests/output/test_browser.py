"""What a browser makes of the report. Skipped without Playwright or an installed Chromium."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.output.made import HOSTILE, made, recipe

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
TITLE = "rows.parquet – selected by curate"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [HOSTILE[i] if i < len(HOSTILE) else f"text number {i}" for i in range(200)]
    table = Dataset.from_dict({"text": texts, "label": [f"l{i % 3}" for i in range(200)]})
    by = recipe({"text": "text", "label": "label"}, objective="sequence_classification")
    return made(tmp_path_factory.mktemp("report") / "run", table, by) / "report.html"


def shown_rows(page: Any) -> list[int]:
    rows = page.locator("#rows tr[data-row]")
    return [int(row) for row in rows.evaluate_all("rows => rows.map(row => row.dataset.row)")]


def errors_of(page: Any) -> list[str]:
    """A list that what goes wrong in the page is added to."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    return errors


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_asks_for_nothing_and_nothing_goes_wrong(page: Any, report: Path, scheme: str) -> None:
    errors, requests = errors_of(page), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri() + "#row=10,11,12,13,14")
    assert page.title() == TITLE
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert errors == []
    assert page.locator("#rows .opened dd").first.text_content() == HOSTILE[0]


def test_the_policy_of_the_page_stops_what_gets_in(page: Any, report: Path) -> None:
    """Were something not escaped, it would neither run nor ask anybody."""
    bad = '<script>document.title = "owned"</script><img src="https://127.0.0.1:9/x.png">'
    spoiled = report.with_name("bad.html")
    spoiled.write_text(report.read_text().replace("<main>", "<main>" + bad))
    errors = errors_of(page)
    page.goto(spoiled.as_uri())
    assert page.title() == TITLE
    assert sum("Content Security Policy" in error for error in errors) == 2


def test_rows_are_filtered(page: Any, report: Path) -> None:
    page.goto(report.as_uri())
    number = page.locator("#found")
    assert shown_rows(page) == list(range(10, 60))
    api.expect(number).to_have_text("200 of 200 rows")
    page.locator("#q").fill("NUMBER 19")
    # every word, in any column or the row's number
    expected = [
        row for row in range(10 + len(HOSTILE), 210) if "19" in f"{row} text number {row - 10}"
    ]
    api.expect(number).to_have_text(f"{len(expected)} of 200 rows")
    assert shown_rows(page) == expected
    page.locator("#is").select_option("dropped")
    page.locator("#label").select_option("l1")
    fewer = [row for row in expected if row >= 110 and (row - 10) % 3 == 1]
    assert shown_rows(page) == fewer != []
    link = page.url
    assert link.endswith("#q=NUMBER+19&is=dropped&label=l1")
    page.goto("about:blank")
    page.goto(link)
    assert shown_rows(page) == fewer
    assert page.locator("#q").input_value() == "NUMBER 19"


def test_a_row_is_opened_by_keyboard(page: Any, report: Path) -> None:
    page.goto(report.as_uri())
    page.locator('#rows tr[data-row="17"] button').focus()
    opened, focused = page.locator("#rows .opened"), page.locator(":focus")
    page.keyboard.press("Enter")
    api.expect(opened).to_contain_text("text number 7")
    api.expect(opened).to_contain_text("kept, top by score: rank 8 of 200")
    api.expect(focused).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Enter")
    api.expect(opened).to_have_count(0)
    api.expect(focused).to_have_attribute("aria-expanded", "false")


def test_columns_are_sorted(page: Any, report: Path) -> None:
    page.goto(report.as_uri())
    head = page.locator("#rows th[data-key=influence]")
    for order, first in (("descending", 10), ("ascending", 209)):
        head.locator("button").click()
        api.expect(head).to_have_attribute("aria-sort", order)
        assert shown_rows(page)[0] == first
    page.locator("#more").click()
    assert shown_rows(page) == list(range(209, 9, -1))
    api.expect(page.locator("#more")).to_be_hidden()


def test_a_card_leads_to_its_row(page: Any, report: Path) -> None:
    page.goto(report.as_uri())
    page.locator('.card a[href="#row=209"]').first.click()
    api.expect(page.locator("#rows .opened")).to_have_count(1)
    api.expect(page.locator(":focus")).to_have_attribute("aria-label", re.compile("row 209"))


@pytest.mark.parametrize("width", [390, 320])
def test_it_fits_on_a_phone(browser: Any, report: Path, width: int) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}, is_mobile=True) as phone:
        page = phone.new_page()
        page.goto(report.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
