"""Commands on a directory that `curate select` wrote. Importing this loads no torch."""

from pathlib import Path

import click

from curate.cli.process import silence_libraries


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def report(directory: Path) -> None:
    """Write report.html again from what a directory of curate select holds."""
    silence_libraries()
    from curate.output.page import write_report

    click.echo(f"wrote {write_report(directory)}")


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--row", type=int, metavar="N", help="One row, with everything known about it.")
@click.option("--dropped", type=click.IntRange(1), metavar="N", help="The N worst dropped rows.")
@click.option("--kept", type=click.IntRange(1), metavar="N", help="The N best kept rows.")
@click.option("--label", metavar="L", help="Only rows of this label.")
def inspect(
    directory: Path, row: int | None, dropped: int | None, kept: int | None, label: str | None
) -> None:
    """Look at what curate select wrote to DIR: a summary, one row, or a list of rows."""
    silence_libraries()
    from curate.output.inspect import inspect_run

    found = inspect_run(directory, row=row, dropped=dropped, kept=kept, label=label)
    click.echo("\n".join(found))
