"""Files that are whole and hold what was written to them, or are not used."""

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from curate.runtime.large import large, pieces

Tree = Any
"""Dicts with keys of text, lists, numbers, text, None, and tensors and arrays of numbers."""
SPAN = 2**22
"""Bytes that are read or written at once."""
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of the types of numbers, in a file of safetensors."""
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
    write_whole(path, lambda part: save_tensors(tensors, part, metadata))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a file as safetensors does, piece by piece: pages of large arrays are let go of.

    The format: the length of a header, the header in JSON, and the bytes that it points to.
    """
    header, end = dict[str, Any](__metadata__=metadata), 0
    for name, tensor in tensors.items():
        place, end = [end, end + tensor.nbytes], end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": [*tensor.shape]}
        header[name]["data_offsets"] = place
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for some in _bytes_of(tensor):
                file.write(some)


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    if not tensor.numel():
        return
    every = tensor.reshape(-1).view(torch.uint8).numpy().data
    for part in pieces(len(every), SPAN):
        yield every[part]


def read_sealed(path: Path) -> Tree:
    """The tree that `write_sealed` wrote, bit for bit, in new memory on the CPU.

    Raises:
        DamagedError: the file is not there, or not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("checksum")
            # a copy, because arithmetic may round otherwise where memory is aligned otherwise
            tensors = {name: _copied(file, name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read") from error
    if PLAIN not in tensors or str(checksum(tensors)) != expected:
        raise DamagedError(f"{path} is damaged")
    return _put_back(json.loads(tensors.pop(PLAIN).numpy().tobytes()), tensors)


def _copied(file: Any, name: str) -> Tensor:
    """A tensor of an open file, in new memory; in a file without a name where it is large."""
    stored = file.get_slice(name)
    shape, dtype = stored.get_shape(), next(d for d, n in NAMES.items() if n == stored.get_dtype())
    if not shape or dtype == torch.bfloat16:
        return file.get_tensor(name).clone()  # type: ignore[no-any-return]
    copy = torch.from_numpy(large(tuple(shape), torch.empty(0, dtype=dtype).numpy().dtype))
    for part in pieces(shape[0], max(1, SPAN // max(1, copy[:1].nbytes))):
        copy[part] = stored[part]
    return copy


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names, shapes and bits of tensors on the CPU: enough against chance damage."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), crc)
        for some in _bytes_of(tensor):
            crc = zlib.crc32(some, crc)
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
