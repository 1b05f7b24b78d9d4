"""Files that are whole and hold what was written to them, or are not used."""

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Tree = Any
"""Dicts with keys of text, lists, numbers, text, None, and tensors and arrays of numbers."""
PLAIN, TENSOR, ARRAY = "plain", "tensor", "array"


class DamagedError(Exception):
    """A file is missing, or does not hold what was written to it."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside `path` and put in its place: it is never there by half.

    A loss of power does not change that: its content is on the disk before its name is.

    Raises:
        OSError: it cannot be written, with its path; what was there before still is.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(part)
        _to_disk(part)
        part.replace(path)
        _to_disk(path.parent)
    except OSError as error:  # a full disk names no file, and others the part
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_whole_text(path: Path, text: str) -> None:
    """Write text in UTF-8, as `write_whole` does."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_sealed(path: Path, tree: Tree) -> None:
    """Write a tree of values to a file of safetensors, under a checksum.

    Raises:
        OSError, SafetensorError: it cannot be written; what was there before still is.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_take_out(tree, tensors, set()))
    tensors[PLAIN] = torch.frombuffer(bytearray(plain.encode()), dtype=torch.uint8)
    metadata = {"checksum": str(checksum(tensors))}
    write_whole(path, lambda part: safetensors.torch.save_file(tensors, part, metadata))


def read_sealed(path: Path) -> Tree:
    """The tree that `write_sealed` wrote, bit for bit, in new memory on the CPU.

    Raises:
        DamagedError: the file is not there, or not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("checksum")
            # a copy, because arithmetic may round otherwise where memory is aligned otherwise
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read") from error
    if PLAIN not in tensors or str(checksum(tensors)) != expected:
        raise DamagedError(f"{path} is damaged")
    return _put_back(json.loads(tensors.pop(PLAIN).numpy().tobytes()), tensors)


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names, shapes and bits of tensors on the CPU: enough against chance damage."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def digest_of(plain: Any) -> str:
    """A checksum of plain values, 16 characters."""
    return hashlib.blake2b(json.dumps(plain).encode(), digest_size=8).hexdigest()


def _take_out(tree: Tree, tensors: dict[str, Tensor], taken: set[int]) -> Any:
    """The tree with a reference in place of each tensor, all of which go to `tensors`.

    taken: the addresses of these tensors: a file cannot have two names for the same memory.
    """
    if isinstance(tree, dict):
        return {key: _take_out(value, tensors, taken) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_take_out(value, tensors, taken) for value in tree]
    if not isinstance(tree, Tensor | np.ndarray):
        return tree
    kind = TENSOR if isinstance(tree, Tensor) else ARRAY
    tensor = tree.detach().cpu() if isinstance(tree, Tensor) else torch.from_numpy(tree)
    dense = torch.empty(tensor.shape, device="meta").stride()
    whole = tensor.stride() == dense and tensor.untyped_storage().nbytes() == tensor.nbytes
    if not whole or tensor.data_ptr() in taken:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    taken.add(tensor.data_ptr())
    name = f"{kind} {len(tensors)}"
    tensors[name] = tensor
    return {"": name}


def _put_back(tree: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """The inverse of `_take_out`."""
    if isinstance(tree, list):
        return [_put_back(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "" not in tree:
        return {key: _put_back(value, tensors) for key, value in tree.items()}
    tensor = tensors[tree[""]]
    return tensor.numpy() if tree[""].startswith(ARRAY) else tensor


def _to_disk(path: Path) -> None:
    """Wait until what a file or a directory holds is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
