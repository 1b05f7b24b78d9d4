"""Loading with transformers and peft, from directories and names on the Hub."""

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
from curate.models.from_path import foreign_code, one_line

WEIGHTS = (".safetensors", ".bin")
LOADED = (*WEIGHTS, ".py", ".json", ".txt", ".model", ".jinja")
"""Endings of the files that are read from a directory."""
CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json")


def load(kind: str, path: str, key: str, *, trust: bool = False, **arguments: Any) -> Any:
    """What the class `kind` of transformers loads from `path`; `key` is the recipe's, for errors.

    `trust`: whether code that is there is run; otherwise nobody is asked, and it is refused.

    Raises:
        ModelError: it cannot be loaded. MissingExtraError: transformers is not installed.
    """
    auto = getattr(transformers(), kind)
    with loading(path, key):
        return auto.from_pretrained(path, trust_remote_code=trust, **arguments)


@contextmanager
def loading(path: str, key: str) -> Iterator[None]:
    """Load from `path` silently; a failure becomes a ModelError of one line."""
    if not os.path.isdir(path) and not HUB_NAME.fullmatch(path):
        raise ModelError(f"{key}: {path}: no such directory.")
    try:
        with quiet(), foreign_code(f"{key}: loading {path}"):
            yield
    except ModelError as error:
        if not isinstance(error.__cause__, OSError | ValueError):
            raise
        where = "" if os.path.isdir(path) else "no such directory, and from the Hub: "
        reason = one_line(error.__cause__)
        raise ModelError(f"{key}: {path}: cannot be loaded: {where}{reason}") from error


def describe_files(path: str, *, weights: bool = True) -> dict[str, str]:
    """What identifies a model, tokenizer or adapter that was loaded, for provenance.

    A directory is identified by what its files hold (`weights`: those of weights included), at
    about a gigabyte a second; a name on the Hub by the revision that was taken.
    """
    if not os.path.isdir(path):
        cached = (try_to_load_from_cache(path, name) for name in CONFIGS)
        revisions = (Path(config).parent.name for config in cached if isinstance(config, str))
        return {"revision": next(revisions, "unknown")}
    digest = blake2b(digest_size=8)
    for entry in sorted(Path(path).iterdir()):
        counts = entry.suffix in LOADED and (weights or entry.suffix not in WEIGHTS)
        if counts and entry.is_file():
            with entry.open("rb") as file:
                digest.update(entry.name.encode() + b"\0" + file_digest(file, blake2b).digest())
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
    """The package transformers; raises MissingExtraError where it is not installed."""
    return installed("transformers", "model.pretrained", "hf")


def installed(package: str, key: str, extra: str) -> Any:
    """A package that only the recipe's `key` needs; `extra`: curate's extra that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, key, extra) from error
