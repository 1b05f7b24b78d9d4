"""The way to what transformers and peft load: directories, and names on the Hub."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b, file_digest
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from curate.datasets import HUB_NAME
from curate.errors import MissingExtraError, ModelError
from curate.models.from_path import foreign_code

WEIGHTS = (".safetensors", ".bin")
LOADED = (*WEIGHTS, ".json", ".txt", ".model", ".jinja")
"""What is read of a directory, by the ends of names."""
CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json")


def load(kind: str, path: str, key: str, **arguments: Any) -> Any:
    """What `kind` of transformers' classes loads from `path`; `key` is the recipe's, for errors.

    Raises:
        ModelError: it cannot be loaded. MissingExtraError: transformers is not installed.
    """
    auto = getattr(transformers(), kind)
    with loading(path, key):
        return auto.from_pretrained(path, **arguments)


@contextmanager
def loading(path: str, key: str) -> Iterator[None]:
    """Load from `path` without a word, and say in one line what went wrong."""
    if not os.path.isdir(path) and not HUB_NAME.fullmatch(path):
        raise ModelError(f"{key}: {path}: no such directory.")
    try:
        with quiet(), foreign_code(f"{key}: loading {path}"):
            yield
    except ModelError as error:
        if not isinstance(error.__cause__, OSError | ValueError):
            raise
        where = "" if os.path.isdir(path) else "no such directory, and from the Hub: "
        reason = " ".join(str(error.__cause__).split())
        raise ModelError(f"{key}: {path}: cannot be loaded: {where}{reason}") from error


def describe_files(path: str, *, weights: bool = True) -> dict[str, str]:
    """What identifies a model, tokenizer or adapter that was loaded, for provenance.

    A directory by what its files hold, at about a gigabyte a second; a name on the Hub by the
    revision that was taken.

    weights: whether they count.
    """
    if not os.path.isdir(path):
        found = (try_to_load_from_cache(path, name) for name in CONFIGS)
        revisions = [Path(own).parent.name for own in found if isinstance(own, str)]
        return {"revision": revisions[0] if revisions else "unknown"}
    digest = blake2b(digest_size=8)
    for own in sorted(Path(path).iterdir()):
        counts = own.suffix in LOADED and (weights or own.suffix not in WEIGHTS)
        if counts and own.is_file():
            with own.open("rb") as file:
                digest.update(own.name.encode() + b"\0" + file_digest(file, blake2b).digest())
    return {"fingerprint": digest.hexdigest()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting what it loads and tokenizes."""
    log = transformers().utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def transformers() -> Any:
    """The package, see `installed`."""
    return installed("transformers", "model.pretrained", "hf")


def installed(package: str, key: str, extra: str) -> Any:
    """A package that only the recipe's `key` needs; `extra`: of ours that has it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, key, extra) from error
