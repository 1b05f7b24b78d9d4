"""The user's own code: objects named by `package.module:name`, and what they raise."""

import copy
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from curate.datasets.session import PREFIX, handed
from curate.errors import CurateError, ModelError

FOREIGN = (RuntimeError, TypeError, ValueError, IndexError, KeyError)
"""What torch and a model raise when they are called with what they cannot take."""


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Run code that is not ours: whatever it raises becomes one ModelError that says what ran.

    An ImportError is left to the caller, who knows what was looked for.
    """
    try:
        yield
    except (CurateError, ImportError, KeyboardInterrupt):
        raise
    except BaseException as error:
        message = one_line(error)
        raise ModelError(
            f"{what} raised {type(error).__name__}{': ' if message else ''}{message} "
            "(CURATE_TRACEBACK=1 shows where)."
        ) from error


def load_attribute(path: str, key: str) -> Any:
    """The object that `package.module:name` names; `key` is the recipe's, for errors.

    The working directory is searched too, as `python -m` does. `session:name` is one that a Python
    session hands over.

    Raises:
        ModelError: the path is malformed, or nothing is there.
    """
    if path.startswith(PREFIX):
        return handed(path)
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise ModelError(f"{key}: must look like package.module:name but got {path!r}.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with foreign_code(f"{key}: importing {module_name}"):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(f"{key}: cannot import {module_name}: {error}.") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ModelError(f"{key}: module {module_name} has no {attribute}.") from error


def build_model(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the factory at `path` with `arguments`; it must return an `nn.Module`.

    A module itself is copied, with the weights that it has.
    """
    factory = load_attribute(path, "model.factory")
    if isinstance(factory, nn.Module):
        with foreign_code(f"model.factory: copying {path}"):
            return copy.deepcopy(factory)
    if not callable(factory):
        raise ModelError(f"model.factory: {path} is a {type(factory).__name__}, not a function.")
    with foreign_code(f"model.factory: {path}"):
        module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"model.factory: {path} must return a torch.nn.Module but got a "
            f"{type(module).__name__}."
        )
    return module
