"""What is said of the memory of a probe before it runs, where the graph takes most of it."""

import pytest
import torch
from support.vector_count import counted_vectors
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_linf import Landscape, measure_geometry, probe_memory
from lightning_linf.probe import ProbeError

VOCABULARY, WIDTH, LENGTH = 64, 32, 48


class Attention(nn.Module):
    """A network with all that makes graphs large: attention, normalisation, dropout, tied maps."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.maps = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm, self.batch_norm = nn.LayerNorm(WIDTH), nn.BatchNorm1d(LENGTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens):
        hidden = self.batch_norm(self.norm(self.embedding(tokens)))
        heads = [x.unflatten(-1, (4, -1)).transpose(1, 2) for x in self.maps(hidden).chunk(3, -1)]
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        hidden = hidden + self.dropout(mixed.transpose(1, 2).flatten(2))
        return hidden @ self.embedding.weight.T


def loss(module, tokens):
    return nn.functional.cross_entropy(module(tokens).flatten(0, 1), tokens.flatten())


def tokens(*num_samples):
    torch.manual_seed(0)
    return [torch.randint(VOCABULARY, (count, LENGTH)) for count in num_samples]


def network():
    torch.manual_seed(1)
    return Attention()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_graph_and_product_are_what_the_allocator_counts(mode):
    module, batches = network(), tokens(48)
    options = {"loss": loss, "mode": mode, "num_probes": 4}
    memory = probe_memory(module, batches, num_partitions=2, **options)
    assert memory.graph > 400 * memory.vector
    with counted_vectors(memory.num_params) as count:
        measure_geometry(module, batches, partitions=("coordinate", "global"), **options)
    # 2 %: buffers inside operations, and small ones that do not grow with d.
    assert abs(memory.peak / memory.vector / count.peak - 1) < 0.02, (str(memory), str(count))


def test_nothing_is_changed_and_nothing_drawn():
    module, batches = network(), tokens(4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    places = [id(p) for p in module.parameters()]
    random_state = torch.get_rng_state()
    first = probe_memory(module, batches, loss=loss, mode="train")
    assert first == probe_memory(module, batches, loss=loss, mode="train")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert places == [id(p) for p in module.parameters()]
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_under_anomaly_detection_it_counts_the_same():
    module, batch, loss = nn.Linear(3, 2), torch.ones(4, 3), lambda m, x: m(x).square().mean()
    plain = probe_memory(module, [batch], loss=loss)
    with torch.autograd.set_detect_anomaly(True):
        assert probe_memory(module, [batch], loss=loss) == plain


def test_parts_have_smaller_graphs_and_unequal_batches_count_by_the_largest():
    module = network()
    whole = probe_memory(module, tokens(8), loss=loss)
    parts = probe_memory(module, tokens(8), loss=loss, num_parts=4)
    assert parts.graph < 0.3 * whole.graph
    assert probe_memory(module, tokens(2, 8, 2), loss=loss).graph == whole.graph
    assert probe_memory(module, tokens(8), loss=loss, offload="cpu").graph == whole.graph


def test_a_module_on_the_meta_device_needs_no_memory_at_all():
    with torch.device("meta"):
        module = Attention()
    there = probe_memory(module, [batch.to("meta") for batch in tokens(4)], loss=loss)
    here = probe_memory(network(), tokens(4), loss=loss)
    assert there.phases == pytest.approx(here.phases, rel=1e-3)


def test_checkpointed_activations_are_the_same_to_the_bit_and_held_all_the_same():
    class Checkpointed(Attention):
        def forward(self, tokens):
            return checkpoint(super().forward, tokens, use_reentrant=False)

    torch.manual_seed(1)
    plain, other, batches = network(), Checkpointed(), tokens(4)
    other.load_state_dict(plain.state_dict())
    products = []
    for module in (plain, other):
        # Dropout draws, BatchNorm takes statistics of the batch, one weight is used twice.
        with Landscape(module, batches, loss=loss, mode="train") as landscape:
            torch.manual_seed(2)
            products.append(landscape.hvp(torch.randn(landscape.parameters.num_params)))
    assert torch.equal(*products)
    graphs = [
        probe_memory(module, batches, loss=loss, mode="train").graph for module in (plain, other)
    ]
    # What is recomputed for the gradient is kept for its derivative.
    assert graphs[1] == pytest.approx(graphs[0], rel=0.01)


def test_shown_are_the_peak_and_every_phase():
    memory = probe_memory(network(), tokens(4), loss=loss)
    first, *phases = str(memory).splitlines()
    assert first.startswith("A probe takes at most ")
    assert [line[:15].strip() for line in phases] == list(memory.phases)
    assert max(memory.phases, key=memory.phases.get) == "operator norm"


NEEDS_VALUES = {
    "decision": lambda value: value if value < 100 else value / 2,
    "number": lambda value: value * min(1.0, value.item()) ** 0,
    "array": lambda value: value * float(value.detach().numpy() < 100),
    "address": lambda value: value * (value.data_ptr() > 0),
}


@pytest.mark.parametrize("name", NEEDS_VALUES)
def test_a_loss_that_needs_its_values_is_refused_before_and_measured_all_the_same(name):
    def needs(module, batch):
        return NEEDS_VALUES[name](loss(module, batch))

    module, batches = network(), tokens(2)
    with pytest.raises(ProbeError, match=r"^probe_memory: expected a loss that can be followed"):
        probe_memory(module, batches, loss=needs)
    with Landscape(module, batches, loss=needs) as landscape:
        assert landscape.loss() == pytest.approx(loss(module.eval(), *batches).item())


def test_number_of_parts_must_be_whole():
    with pytest.raises(ValueError, match=r"^probe_memory: expected `num_parts` >= 1, got 0"):
        probe_memory(network(), tokens(2), loss=loss, num_parts=0)
