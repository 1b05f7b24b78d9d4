"""`curate init`."""

from pathlib import Path

import click

from curate.cli.arguments import PATH
from curate.cli.process import silence_libraries


@click.command()
@click.argument("data")
@click.option("--validation", metavar="FILE", help="Rows that were checked, as DATA is given.")
@click.option("--label", metavar="COLUMN", help="What is to be predicted, if the guess is wrong.")
@click.option("--split", help="Which split of DATA, where it has several.")
@click.option("--name", help="The configuration of a Hub dataset that has several.")
@click.option(
    "--out", type=PATH, default="recipe.yaml", show_default=True, help="The recipe to write."
)
@click.option("--overwrite", is_flag=True, help="Replace it.")
def init(data: str, out: Path, overwrite: bool, **known: str | None) -> None:
    """Look at DATA, say what is there, and write a recipe for it.

    DATA is a CSV, JSON Lines or Parquet file, a pattern of such files, a folder of pictures with a
    folder for each class, a directory of save_to_disk, or a name on the Hub.
    """
    silence_libraries()
    from curate.cli.summary import describe_look
    from curate.pipeline.init import Asked, run_init

    click.echo(describe_look(run_init(Asked(data, **known), out, overwrite=overwrite)))
