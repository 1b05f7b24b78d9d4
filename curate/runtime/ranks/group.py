"""Processes that torchrun started, on one machine or several."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from curate.errors import RunError, UserError
from curate.runtime.ranks.base import everywhere

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others: one may read data or write results meanwhile."""
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FAILED = "curate/failed"


class _Together:
    """Ranks as a process group of torch.distributed.

    Raises, from every collective:
        RunError: another rank is gone.
    """

    _group: dist.ProcessGroup | None

    def __init__(self, rank: int, size: int, local: int) -> None:
        self.rank, self.size, self.local = rank, size, local

    def sum(self, part: Tensor) -> Tensor:
        total = part.contiguous()
        with self._in_touch():
            dist.all_reduce(total, group=self._group)
        return total

    def join(self, part: Tensor, lengths: Sequence[int]) -> Tensor:
        padded = part.new_zeros(*part.shape[:-1], max(lengths))
        padded[..., : part.shape[-1]] = part
        parts = [torch.empty_like(padded) for _ in lengths]
        with self._in_touch():
            dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[..., :k] for part, k in zip(parts, lengths, strict=True)], dim=-1)

    def same(self, tensor: Tensor) -> Tensor:
        first = tensor.contiguous()
        with self._in_touch():
            dist.broadcast(first, group=self._group, group_src=0)
        return first

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = str(error).partition(". ")[0]
            raise RunError(
                f"process {self.rank} of {self.size} lost the others, one of which may have been "
                f"killed (for want of memory?): {why}"
            ) from error


class Members(_Together):
    """Processes of a group that somebody else has made and ends: those that train a loop together.

    They talk in a group of their own, so that nothing comes between what the loop sends.
    """

    def __init__(self, of: dist.ProcessGroup | None = None) -> None:
        """`of`: the group; all processes if None. Waits until all of them have come here."""
        numbers = None if of is None else dist.get_process_group_ranks(of)
        super().__init__(
            dist.get_rank(of), dist.get_world_size(of), int(os.environ.get("LOCAL_RANK", 0))
        )
        self._group = dist.new_group(
            numbers, backend=_backend(), use_local_synchronization=numbers is not None
        )


class Group(_Together):
    """Ranks as a process group of one's own: gloo for the CPU, NCCL for CUDA devices.

    They fail together: the first to fail says why (`fail`) and leaves (`close`), which ends the
    collectives that the others wait in or come to next.

    Raises, from every collective:
        RunError: another rank is gone.
    """

    def __init__(self, store: Store, rank: int, size: int, local: int = 0) -> None:
        """`store`: where the ranks find each other; it has to outlive them."""
        super().__init__(rank, size, local)
        self._store = store
        if torch.cuda.is_available() and local < torch.cuda.device_count():
            torch.cuda.set_device(local)
        with self._in_touch():
            dist.init_process_group(
                _backend(),
                store=PrefixStore("curate", store),
                rank=rank,
                world_size=size,
                timeout=PATIENCE,
            )
            # Ours alone: modules that are imported later hold the world as a default argument,
            # so that its threads would still let go of tensors while the interpreter ends.
            self._group = dist.new_group(timeout=PATIENCE)
        self.wait()  # who leaves at once would keep the others waiting for a connection

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        everywhere(self, True)

    def fail(self, code: int) -> int | None:
        """Say that this rank ends with an exit code other than 0.

        Returns:
            None if it is the first to fail, which has to say why; else the code of the first.
        """
        this = f"{self.rank} {code}"
        try:
            first = self._store.compare_set(FAILED, "", this).decode()
        except RuntimeError:  # nobody keeps the store any more
            return None
        return None if first == this else int(first.split()[1])

    def close(self, *, failed: bool = False) -> None:
        """Leave; after a failure, without waiting for what is under way."""
        if failed and hasattr(dist.distributed_c10d, "_abort_process_group"):
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()
        self._group = None  # the last that holds it: joins its threads


def _backend() -> str:
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


def join_group() -> Group:
    """The ranks that the environment describes, as torchrun sets it.

    Raises:
        UserError: it does not say who and where they are.
    """
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')} but {missing[0]} is not set; start "
            "several processes with torchrun --nproc-per-node N -m curate, or unset WORLD_SIZE."
        )
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        return Group(store, rank, size, int(os.environ.get("LOCAL_RANK", 0)))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT lead to no other process: "
            f"{' '.join(str(error).split())}"
        ) from error
