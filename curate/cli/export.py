"""`curate export`. Importing this loads no torch."""

from pathlib import Path

import click

from curate.cli.arguments import PATH
from curate.cli.process import silence_libraries


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--to",
    required=True,
    type=click.Choice(["argilla", "label-studio", "fiftyone", "cleanlab"]),
    help="The tool that is to import them.",
)
@click.option("--out", type=PATH, help="Directory to write; DIR.TOOL if not given.")
@click.option(
    "--only",
    type=click.Choice(["suspects", "dropped", "kept"]),
    help="Which rows; if not given suspects, or dropped rows where there are none.",
)
@click.option("--most", type=click.IntRange(1), default=1000, show_default=True, help="How many.")
def export(directory: Path, to: str, out: Path | None, only: str | None, most: int) -> None:
    """Write rows of DIR, which curate select wrote, for a tool in which labels are corrected.

    Suspects are rows whose label is likely wrong, with the label that they should have: the
    likeliest by a model that was trained without them. Corrected labels come back with
    curate select --relabelled.
    """
    silence_libraries()
    from curate.output.export import export_run

    whole = directory.resolve()
    out = out or whole.with_name(f"{whole.name}.{to}")
    click.echo("\n".join(export_run(directory, to, out, only=only, most=most)))
