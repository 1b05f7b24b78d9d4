"""What is remembered outside parameters is found, and put back whatever happened to it."""

import random
from collections import Counter, deque
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from curate.models import as_objective
from curate.models.hidden import LONGEST, Hidden

CALLS = 0
SEEN: list[int] = []


class Meter:
    def __init__(self) -> None:
        self.value, self.values = 0.0, np.zeros(3)


class Net(nn.Module):
    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.calls, self.names, self.by_name = 0, ["a"], {"a": 1}
        self.kinds, self.meter, self.own = {1}, Meter(), random.Random(0)
        self.latest, self.total = deque([1, 2], maxlen=2), torch.zeros(2)


def change(net: Net) -> None:
    """All that a forward pass may do to a module."""
    net.calls += 1
    net.mean = net.mean + 1
    net.names.append("b")
    net.by_name |= {"b": 2}
    net.kinds.discard(1)
    net.meter.value = 1.0
    net.meter.values += 1
    net.layer.scale = 2.0  # type: ignore[assignment]
    net.latest.append(3)
    net.total += 1
    net.own.random()


def remembered(net: Net) -> list[Any]:
    return [
        net.calls,
        net.mean,
        *(list(net.names), dict(net.by_name), set(net.kinds)),
        *(net.meter.value, net.meter.values.tolist()),
        hasattr(net.layer, "scale"),
        *(list(net.latest), net.total.tolist()),
        net.own.getstate(),
    ]


def test_a_module_is_as_it_was_whatever_happened() -> None:
    net = Net()
    before = remembered(net)
    with pytest.raises(ZeroDivisionError), Hidden(net).put_back() as changed:  # noqa: PT012
        assert changed() == []
        change(net)
        names = {*changed()}
        raise ZeroDivisionError
    assert names == {
        *("calls", "mean", "names", "by_name.b", "kinds", "latest", "total"),
        *("meter.value", "meter.values", "layer.scale"),
    }
    after = remembered(net)
    assert after[1] is before[1]
    assert all(one == other for one, other in zip(after[2:], before[2:], strict=True))


def test_functions_and_what_they_hold_on_to() -> None:
    global CALLS
    calls, meter = 0, Meter()

    def counting(step: int) -> None:
        global CALLS
        nonlocal calls
        calls, CALLS = calls + step, CALLS + step
        SEEN.append(step)

    class Watch:
        total = 0

        def look(self) -> None:
            self.total += 1

    watch = Watch()
    for hook in (partial(counting, 1), watch.look, partial(setattr, meter, "value", 3.0)):
        with Hidden(hook).put_back():
            hook()
    assert (calls, CALLS, SEEN, watch.total, meter.value) == (0, 0, [], 0, 0.0)


def test_data_and_what_is_others_is_not_copied() -> None:
    net = Net()
    net.by_name = dict.fromkeys(map(str, range(LONGEST + 1)), 1)
    with Hidden(net).put_back() as changed:
        net.by_name["0"] = 2
        assert changed() == []
    assert net.by_name["0"] == 2


def test_a_long_log_is_cut_to_its_length() -> None:
    net = Net()
    net.names = ["a"] * (LONGEST + 1)
    with Hidden(net).put_back():
        net.names.append("b")
    assert len(net.names) == LONGEST + 1


def test_counts_are_not_added_up() -> None:
    net = Net()
    net.by_name = Counter(a=1)
    with Hidden(net).put_back():
        net.by_name.update(a=1, b=1)  # type: ignore[call-overload]
    assert net.by_name == {"a": 1}


def test_what_instances_share_and_what_a_wrapper_holds() -> None:
    class Shared(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            global CALLS
            CALLS += 1
            Shared.calls += 1
            return x

    shared = Shared()
    space = SimpleNamespace(calls=0)

    def losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        space.calls += 1
        out: torch.Tensor = model(batch)
        return out

    objective = as_objective(losses, "losses")
    with Hidden(shared, objective).put_back():
        objective.losses(shared, torch.zeros(2))
        assert (Shared.calls, CALLS, space.calls) == (1, 1, 1)
    assert (Shared.calls, CALLS, space.calls) == (0, 0, 0)


def test_generators_of_loaders_are_found() -> None:
    own, other = torch.Generator(), torch.Generator()
    data = list(range(8))
    shuffled = DataLoader(data, batch_size=2, shuffle=True, generator=own)  # type: ignore[arg-type]
    sampled = DataLoader(data, sampler=RandomSampler(data, generator=other))  # type: ignore[arg-type]
    before = own.get_state(), other.get_state()
    with Hidden([shuffled], sampled).put_back():
        list(shuffled)
        list(sampled)
        assert not torch.equal(own.get_state(), before[0])
    assert torch.equal(own.get_state(), before[0])
    assert torch.equal(other.get_state(), before[1])


def test_what_is_too_large_to_copy_is_named_as_in_the_module() -> None:
    net = Net()
    net.layer.register_buffer("bank", torch.zeros(LONGEST + 1))
    names = {name for name, _ in Hidden(net).large}
    assert names == {"layer.bank", "layer.weight", "layer.bias"}
