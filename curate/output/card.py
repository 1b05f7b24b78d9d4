"""The dataset card: README.md of a run's directory, as people and the Hugging Face Hub read it."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from curate.output.facts import every_fact
from curate.output.saved_run import SavedRun
from curate.output.words import evaluation_cells, one_line, visible
from curate.recipe import write_recipe
from curate.runtime.files import write_whole_text

CARD = "README.md"


def write_card(run: SavedRun) -> None:
    """Write the card of a run into its directory, so that `load_dataset` finds the rows kept."""
    write_whole_text(run.folder / CARD, card(run))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(  # autoescape is HTML's; `finalize` is Markdown's
        loader=jinja2.PackageLoader("curate.output"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=markdown,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2")


def card(run: SavedRun) -> str:
    """The card, which depends on nothing but what the directory holds.

    Whatever comes from the data or the recipe is escaped: it is shown, and does nothing.
    """
    made = run.provenance
    evaluation = evaluation_cells(made["evaluation"]) if made.get("evaluation") else []
    versions = [f"{name} {version}" for name, version in made.get("versions", {}).items()]
    text = _template().render(
        run=run,
        content=_content(run.folder / "train"),
        size=size_category(run.kept),
        table=_table,
        facts=every_fact(run),
        evaluation=evaluation,
        files={path.name for path in run.folder.iterdir()},
        sources=_sources(made.get("sources", {})),
        versions=", ".join(versions) or "unknown versions",
        recipe=None if run.recipe is None else _fenced(write_recipe(run.recipe), "yaml"),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def markdown(value: Any) -> Any:
    """A value as Markdown shows it, on one line, neither markup nor HTML; `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    text = one_line(visible(str(value)))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(re.sub(r"[\\`*_{}\[\]#|~$!]", r"\\\g<0>", text))


def size_category(rows: int) -> str:
    """The Hub's tag for the size of a dataset."""
    if rows < 1000:
        return "n<1K"
    power = len(str(rows)) - 1
    low, high = (f"{10 ** (p % 3)}{' KMBT'[p // 3]}" for p in (power, power + 1))
    return f"{low}<n<{high}" if rows < 10**12 else "n>1T"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    first, *others = ([markdown(cell) for cell in row] for row in (head, *rows))
    lines = [first, ["---"] * len(first), *others]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _sources(sources: dict[str, Any]) -> list[list[str]]:
    """Name, rows and fingerprint of each; a model has no rows, a loop's dataset only its name."""
    cells = []
    for name, source in sources.items():
        if not isinstance(source, dict):
            cells.append([str(source), "", ""])
            continue
        rows = f"{source['rows']:,}" if "rows" in source else ""
        fingerprint = source.get("fingerprint", source.get("revision", ""))
        cells.append([name, rows, str(fingerprint)])
    return cells


def _fenced(text: str, language: str) -> str:
    """A block of code, whatever backticks are in it."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def _content(folder: Path) -> str:
    """A digest of the shards.

    `load_dataset` caches by a directory's last name and what its card says: without it,
    another selection under the same name would be taken for this one.
    """
    digest = hashlib.sha256()
    for shard in sorted(folder.glob("*.arrow")):
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
