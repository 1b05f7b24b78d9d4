"""The dataset card: README.md of a run's directory, as people and the Hugging Face Hub read it."""

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from curate.output.facts import asked, came_out, trust, worth
from curate.output.saved_run import Run
from curate.output.words import evaluation_cells, one_line, visible
from curate.recipe import write_recipe
from curate.runtime.files import write_whole_text

CARD = "README.md"
FILES = {
    "dropped.parquet": "dropped rows, as many as are worth a look",
    "windows.parquet": "every window of the run: what dropping rows was predicted to change in the "
    "target's loss and did, and the terms of the influences' error",
    "report.html": "all of it to look at, in one file",
    "recipe.yaml": "every setting; repeats the run",
    "provenance.json": "versions, fingerprints of data and model, seeds, timings",
}
"""What may lie beside the rows and their scores, and what that is."""
SIZES = ((1e3, "1K"), (1e4, "10K"), (1e5, "100K"), (1e6, "1M"), (1e7, "10M"), (1e8, "100M"),
         (1e9, "1B"), (1e10, "10B"), (1e11, "100B"), (1e12, "1T"))  # fmt: skip
"""Where the Hub's size categories end."""


def write_card(run: Run) -> None:
    """Write the card of a run into its directory, so that `load_dataset` finds the rows kept."""
    write_whole_text(run.folder / CARD, card(run))


def card(run: Run) -> str:
    """The card, which depends on nothing but what the directory holds.

    Whatever comes from the data or the recipe is escaped: it is shown, and does nothing.
    """
    environment = jinja2.Environment(  # autoescape is HTML's; `finalize` is Markdown's
        loader=jinja2.PackageLoader("curate.output"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=markdown, keep_trailing_newline=True,
    )  # fmt: skip
    provenance = run.provenance
    evaluation = [own.model_dump(exclude_unset=True) for own in provenance.evaluation]
    text = environment.get_template("card.md.j2").render(
        run=run,
        content=_content(run.folder / "train"),
        size=size_category(len(run.kept)),
        tokens=_tokens(run),
        influences=bool(run.scores["influence"].count()),
        table=_table,
        asked=asked(run),
        came_out=came_out(run),
        trust=trust(run),
        worth=worth(run),
        evaluation=evaluation_cells(evaluation) if evaluation else [],
        files=FILES.items(),
        there={path.name for path in run.folder.iterdir()},
        sources=_sources(provenance.sources),
        versions=", ".join(f"{name} {own}" for name, own in provenance.versions.items())
        or "unknown versions",
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
    """How large a dataset is, as the Hub's tag says it."""
    names = ["n<1K", *(f"{a}<n<{b}" for (_, a), (_, b) in pairwise(SIZES))]
    return next((own for own, (end, _) in zip(names, SIZES, strict=True) if rows < end), "n>1T")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    first, *others = ([markdown(cell) for cell in row] for row in (head, *rows))
    lines = [first, ["---"] * len(first), *others]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _sources(sources: dict[str, Any]) -> list[list[str]]:
    """Name, rows and fingerprint of each; a model has no rows, a loop's dataset only its name."""
    return [
        [name, f"{own['rows']:,}" if "rows" in own else "", str(_identity(own))]
        if isinstance(own, dict)
        else [str(own), "", ""]
        for name, own in sources.items()
    ]


def _identity(source: dict[str, Any]) -> Any:
    """A fingerprint, or a revision on the Hub."""
    return source.get("fingerprint", source.get("revision", ""))


def _fenced(text: str, language: str) -> str:
    """A block of code, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
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


def _tokens(run: Run) -> str:
    """How many tokens are kept, if they are counted."""
    if "tokens" not in run.scores.columns:
        return ""
    kept = run.scores.filter("kept")["tokens"].sum()
    return f" ({kept:,} of {run.scores['tokens'].sum():,} tokens)"
