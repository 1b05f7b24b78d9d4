"""Datasets on the Hugging Face Hub: a directory of ours becomes a dataset repository."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from curate.errors import CurateError, OptionError, OutputError, RunError, UserError
from curate.output import MARK

NEEDED = (MARK, "README.md", "train", "scores.parquet")
STALE = ("train/*", "dropped.parquet", "windows.parquet", "recipe.yaml", "verify.*")
"""What an earlier push may have left that this one does not have."""
IGNORED = (".*", "*/.*", "*.partial.*")


def check_push(name: str, *, public: bool = False) -> None:
    """Raise UserError if pushing to `NAMESPACE/NAME` cannot succeed, before the work for it.

    Asks the Hub who we are and what is there under that name; changes nothing.
    """
    _check_name(name)
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{name}: cannot be pushed offline; unset HF_HUB_OFFLINE.")
    with _explained(f"{name}: cannot be pushed", UserError):
        if get_token() is None:
            raise UserError(
                f"{name}: cannot be pushed without a token; run `hf auth login` or set HF_TOKEN."
            )
        _check_rights(name, HfApi().whoami())
        try:
            there = HfApi().dataset_info(name)
        except RepositoryNotFoundError:
            return
    files = {own.rfilename for own in there.siblings or []} - {".gitattributes"}
    if files and MARK not in files:
        raise OutputError(
            f"{name}: is a dataset that curate did not push, so it leaves it alone; give another "
            "name."
        )
    if public == bool(there.private):
        raise OptionError(
            f"{name}: is there and private; leave out --public, or change that in its settings."
            if public
            else f"{name}: is there and public; give --public to push to it all the same."
        )


def check_directory(folder: Path) -> None:
    """Raise OutputError unless a directory is one that `curate select` finished."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise OutputError(
            f"{folder}: is no directory of curate select"
            + (f"; it has no {missing[0]}." if folder.is_dir() else ".")
        )


def push(folder: Path, name: str, *, public: bool = False, quiet: bool = False) -> str:
    """Upload a finished directory, all of it, as the dataset `NAMESPACE/NAME`.

    `load_dataset(name)` then gives the rows that were kept. A repository that curate pushed
    before gets a commit that replaces what it has; its history keeps that.

    Args:
        public: make it public; private if not.
        quiet: no progress bars.

    Returns:
        The address of the dataset.

    Raises:
        RunError: the Hub or the way there failed. The directory is as it was.
    """
    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
    again = f"`curate push {folder} {name}{' --public' if public else ''}`"
    try:
        with _explained(
            f"{folder} is written, but pushing it failed", RunError, f" Try again with {again}."
        ):
            address = HfApi().create_repo(
                name, repo_type="dataset", private=not public, exist_ok=True
            )
            HfApi().upload_folder(
                folder_path=folder, repo_id=name, repo_type="dataset",
                commit_message=f"Selected by curate {version('curate')}",
                ignore_patterns=[*IGNORED], delete_patterns=[*STALE],
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{folder} is written, but not pushed; {again} does that") from stop
    return str(address)


def _check_name(name: str) -> None:
    problem = "it must be NAMESPACE/NAME, yours or an organization's"
    try:
        validate_repo_id(name)
        if name.count("/") == 1:
            return
    except HFValidationError as error:
        problem = str(error).partition(":")[0]
    raise OptionError(f"{name!r}: is no name of a dataset on the Hub: {problem}.")


def _check_rights(name: str, me: dict[str, Any]) -> None:
    """A token for reading, or for somebody else, is seen at once; a fine-grained one is not."""
    namespace, _, _ = name.partition("/")
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    own = [me.get("name"), *(org.get("name") for org in me.get("orgs", []))]
    if role == "read":
        raise UserError(f"{name}: the token is for reading only; log in with one that may write.")
    if role == "write" and namespace not in own:
        raise UserError(
            f"{name}: {me.get('name')} is no member of {namespace}; push to "
            f"{' or '.join(f'{one}/' for one in own if one)}."
        )


@contextmanager
def _explained(what: str, kind: type[CurateError], remedy: str = "") -> Iterator[None]:
    try:
        yield
    except CurateError:
        raise
    except Exception as error:  # the client's own, its HTTP library's, its uploader's
        raise kind(f"{what}: {_reason(error)}.{remedy}") from error


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = {
        401: "the token is not accepted; log in again with `hf auth login`",
        403: "the token may not do that; use one that may write there",
    }
    if isinstance(error, HfHubHTTPError) and status in known:
        return known[status]
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(said.split()).rstrip(".")
