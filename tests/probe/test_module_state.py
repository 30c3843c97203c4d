"""Everything reachable from a module goes back to what it was, in place."""

import random
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.quasirandom import SobolEngine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from lightning_linf.errors import RestoreError
from lightning_linf.probe import ProbeError
from lightning_linf.probe.module_state import untouched


class Slotted:
    __slots__ = ("count", "items")

    def __init__(self):
        self.count, self.items = 0, []


@dataclass
class Meter:
    total: float = 0.0
    seen: list = field(default_factory=list)


def hook(module, args, output):
    return None


CHANGES = {
    "data set": (
        lambda m: setattr(m, "x", {"train": TensorDataset(torch.ones(2))}),
        lambda m: setattr(m.x["train"], "level", 1),
    ),
    "counter": (lambda m: setattr(m, "x", 0), lambda m: setattr(m, "x", 1)),
    "new attribute": (lambda m: None, lambda m: setattr(m, "x", 1)),
    "deleted attribute": (lambda m: setattr(m, "x", 1), lambda m: delattr(m, "x")),
    "list": (lambda m: setattr(m, "x", [1]), lambda m: m.x.append(2)),
    "list of lists": (lambda m: setattr(m, "x", [[1]]), lambda m: m.x[0].clear()),
    "dict": (lambda m: setattr(m, "x", {"a": {"b": 1}}), lambda m: m.x["a"].update(b=2)),
    "defaultdict": (lambda m: setattr(m, "x", defaultdict(int)), lambda m: m.x["new"]),
    "counts": (lambda m: setattr(m, "x", Counter("a")), lambda m: m.x.update("ab")),
    "ordered": (
        lambda m: setattr(m, "x", OrderedDict(a=1, b=2)),
        lambda m: m.x.move_to_end("a"),
    ),
    "user dict": (lambda m: setattr(m, "x", UserDict(a=1)), lambda m: m.x.pop("a")),
    "set": (lambda m: setattr(m, "x", {1}), lambda m: m.x.add(2)),
    "deque": (lambda m: setattr(m, "x", deque([1], maxlen=1)), lambda m: m.x.append(2)),
    "in a tuple": (lambda m: setattr(m, "x", ([1],)), lambda m: m.x[0].append(2)),
    "dataclass": (lambda m: setattr(m, "x", Meter()), lambda m: m.x.seen.append(1)),
    "namespace": (lambda m: setattr(m, "x", SimpleNamespace(a=0)), lambda m: setattr(m.x, "a", 1)),
    "slots": (lambda m: setattr(m, "x", Slotted()), lambda m: setattr(m.x, "count", 5)),
    "list in slots": (lambda m: setattr(m, "x", Slotted()), lambda m: m.x.items.append(5)),
    "tensor": (lambda m: setattr(m, "x", torch.zeros(2)), lambda m: m.x.add_(1)),
    "tensor data": (lambda m: setattr(m, "x", torch.zeros(2)), lambda m: m.x.data.add_(1)),
    "array": (lambda m: setattr(m, "x", np.zeros(2)), lambda m: np.add(m.x, 1, out=m.x)),
    "training flag": (lambda m: None, lambda m: m.eval()),
    "hook": (lambda m: None, lambda m: m.register_forward_hook(hook)),
    "submodule": (lambda m: None, lambda m: m.add_module("new", nn.ReLU())),
    "unregistered module": (
        lambda m: setattr(m, "x", [nn.Dropout()]),
        lambda m: setattr(m.x[0], "p", 0.9),
    ),
    "parameter table": (lambda m: None, lambda m: m._parameters.update(weight=torch.zeros(1, 1))),
    "torch generator": (
        lambda m: setattr(m, "x", torch.Generator()),
        lambda m: torch.rand(1, generator=m.x),
    ),
    "numpy generator": (
        lambda m: setattr(m, "x", np.random.default_rng(0)),
        lambda m: m.x.random(),
    ),
    "numpy random state": (
        lambda m: setattr(m, "x", np.random.RandomState(0)),
        lambda m: m.x.rand(),
    ),
    "sobol": (lambda m: setattr(m, "x", SobolEngine(2)), lambda m: m.x.draw()),
    "replaced data": (
        lambda m: setattr(m, "x", torch.zeros(2)),
        lambda m: setattr(m.x, "data", torch.ones(3)),
    ),
    "expanded": (lambda m: setattr(m, "x", torch.zeros(1).expand(3)), lambda m: m.x[:1].add_(1)),
    "in a tuple of tensors": (
        lambda m: setattr(m, "x", (nn.Parameter(torch.zeros(2)),)),
        lambda m: m.x[0].data.add_(1),
    ),
    "python generator": (lambda m: setattr(m, "x", random.Random(0)), lambda m: m.x.random()),
    "torch": (lambda m: None, lambda m: torch.rand(1)),
    "numpy": (lambda m: None, lambda m: np.random.random()),  # noqa: NPY002
    "python": (lambda m: None, lambda m: random.random()),
}


def describe(value, seen=()):
    """All that a change could show in, as something to compare."""
    if id(value) in seen:
        return "seen"
    seen = (*seen, id(value))
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return (type(value), value.tolist())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return str(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict):
        return [(key, describe(v, seen)) for key, v in value.items()]
    if isinstance(value, (list, tuple, set, deque)):
        return [describe(v, seen) for v in value]
    if isinstance(value, Slotted):
        return (value.count, value.items[:])
    if hasattr(value, "__dict__") and not callable(value):
        return describe(vars(value), seen)
    if isinstance(value, nn.Module):
        return describe(vars(value), seen)
    return repr(value)


def world(module):
    return (
        describe(module),
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
    )


@pytest.mark.parametrize(("prepare", "change"), CHANGES.values(), ids=CHANGES)
def test_changes_are_undone_on_leaving_and_on_rewinding(prepare, change):
    module = nn.Linear(1, 1)
    prepare(module)
    identity = id(getattr(module, "x", None))
    before = world(module)
    with untouched(module) as state:
        change(module)
        assert world(module) != before
        state.rewind()
        assert world(module) == before
        change(module)
    assert world(module) == before
    assert id(getattr(module, "x", None)) == identity


def test_changes_are_undone_after_an_exception():
    module = nn.Linear(1, 1)
    module.calls = 0

    def run():
        with untouched(module):
            module.calls += 1
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        run()
    assert module.calls == 0


def test_a_failing_restore_is_said_and_does_not_stop_the_others():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.bank = torch.zeros(2)
            self.calls = 0

    module = Locked()
    weight = module.weight

    def run():
        with untouched(module) as state:
            for table, key, _ in state.places:
                table[key] = torch.ones(2)
            module.calls += 1
            state._values.insert(0, ("Locked.bank", lambda: 1 / 0))

    with pytest.raises(RestoreError, match=r"Locked.bank \(ZeroDivisionError"):
        run()
    assert module.weight is weight
    assert module.calls == 0


def test_what_cannot_be_put_back_is_refused_by_name():
    module = nn.Linear(1, 1)
    module.stream = iter([1, 2])
    with (
        pytest.raises(ProbeError, match=r"Linear.stream \(list_iterator\) is not: the position"),
        untouched(module, refuse_iterators=True),
    ):
        pass
    with untouched(module):
        assert next(module.stream) == 1


def test_subclasses_that_forbid_update_are_restored():
    transformers = pytest.importorskip("transformers", reason="needs lightning-linf[recipes]")
    module = nn.Linear(1, 1)
    module.last = transformers.modeling_outputs.CausalLMOutput(logits=torch.zeros(1))
    with untouched(module):
        module.last["logits"] = torch.ones(1)
    assert module.last["logits"].item() == module.last.logits.item() == 0.0


def test_large_read_only_arrays_are_not_copied():
    module = nn.Linear(1, 1)
    module.data = np.zeros(3)
    module.data.flags.writeable = False
    with untouched(module) as state:
        assert not state._values


def test_graphs_that_the_training_holds_stay_usable():
    module = nn.Linear(1, 1)
    module.hidden = module(torch.ones(1, 1))
    loss = module.hidden.square().sum()
    with untouched(module):
        pass
    loss.backward()
    assert module.weight.grad is not None


def test_inference_tensors_are_restored():
    module = nn.Linear(1, 1)
    with torch.inference_mode():
        module.cache = torch.zeros(1)
    with untouched(module), torch.inference_mode():
        module.cache.add_(1)
    assert module.cache.item() == 0.0


def test_many_tensors_are_put_back_in_one_call_wherever_their_memory_is():
    module = nn.Linear(1, 1)
    module.history = [torch.full((2, 3), float(i)) for i in range(500)]
    tensors = list(module.history)
    num_calls = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            num_calls[str(func)] += 1
            return func(*args, **(kwargs or {}))

    with untouched(module) as state:
        tensors[0].data.zero_()  # leaves the version as it is
        tensors[1].t_()  # leaves the memory as it is
        tensors[2].data = torch.zeros(7)
        tensors[3].add_(1)
        module.history.clear()
        with Count():
            state.rewind()
        assert sum(count for name, count in num_calls.items() if "copy_" in name) < 10
        tensors[4].add_(1)
    assert module.history == tensors
    assert len(tensors) == 500
    for i, tensor in enumerate(tensors):
        torch.testing.assert_close(tensor, torch.full((2, 3), float(i)), rtol=0, atol=0)
        assert tensor.is_contiguous()


def test_one_tensor_that_cannot_be_put_back_is_named_and_the_others_are():
    module = nn.Linear(1, 1)
    module.history = [torch.zeros(2) for _ in range(3)]

    def change_and_break_one():
        with untouched(module) as state:
            for tensor in module.history:
                tensor.fill_(1.0)
            state._tensors._plain[1].copy = torch.zeros(3)

    with pytest.raises(RestoreError, match=r"Linear\.history\.1 \(") as raised:
        change_and_break_one()
    assert "history.0" not in str(raised.value)
    assert [t.sum().item() for t in module.history] == [0.0, 2.0, 0.0]


def test_what_other_threads_work_on_is_left_alone():
    class Writer:
        def __init__(self):
            self.lock = threading.Lock()
            self.written = 0

    module = nn.Linear(1, 1)
    module.writer = Writer()
    with untouched(module):
        module.writer.written = 7
    assert module.writer.written == 7


def test_log_does_nothing_inside_and_is_the_modules_own_outside():
    class Logged(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = lightning.LightningModule()

    module = Logged()
    with untouched(module):
        module.log("x", 1.0, on_step=True)
        module.inner.log_dict({"x": 1.0})
    assert "log" not in vars(module)
