"""Real networks, tiny and untrained: bit-identical under the monitors, measured, split as they are.

Outside the everyday run: ``make test-zoo``. The numbers of blocks are computed from configurations.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_linf import Partition, measure_geometry
from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)
from lightning_linf.functional import lambda_max
from lightning_linf.functional.random import normal
from lightning_linf.partition.placement import PlacementError
from lightning_linf.probe import Landscape

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers:UserWarning",
        "ignore:.*smaller than the logging interval:UserWarning",
        "ignore:.*torch.jit.script.* is deprecated:DeprecationWarning",  # of torch_geometric
    ),
]
V, E, F_, L, H, T = 11, 8, 12, 2, 2, 5  # words, width, inner width, layers, heads, sequence
LAYER_NORM = 2 * E
SIZES = {
    "hidden_size": E, "intermediate_size": F_, "num_hidden_layers": L, "num_attention_heads": H,
}  # fmt: skip


@dataclass
class Network:
    """A module with a batch, and its numbers of blocks; a text is how "row" or "head" is refused.

    ``extra_heads`` is what splitting by heads adds to one block for each tensor.
    """

    module: nn.Module
    batch: Any
    rows: int | str
    extra_heads: int | str
    options: dict[str, Any] = field(default_factory=dict)
    loss: Callable[[nn.Module, Any], Tensor] = lambda module, batch: module(**batch).loss


def linear(num_outputs, *, bias=True):
    """Count the rows: one for each output's weights, and one for its bias."""
    return num_outputs * (2 if bias else 1)


def split(heads=H, kv=H, *, bias=False):
    """Count what heads add for q, k, v and the output projection, in separate linear maps."""
    qkv = (heads - 1) + 2 * (kv - 1)
    return qkv * (2 if bias else 1) + heads - 1


def fused(heads=H):
    """Count the same where one linear map with a bias computes query, key and value."""
    return 2 * (3 * heads - 1) + heads - 1


def transformers(name, **config):
    package = pytest.importorskip("transformers", reason="needs lightning-linf[zoo]")
    known = getattr(package, f"{name}Config", None)
    if known is None:
        pytest.skip(f"needs a version of transformers with {name}")
    return package, known(**config)


def words(**other):
    ids = torch.randint(3, V, (4, T))
    return {"input_ids": ids, "labels": ids, **other}


def images():
    return {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.randint(4, (4,))}


def llama():
    package, config = transformers(
        "Llama", vocab_size=V, **SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
    )
    inner = linear(E + 4 + 4 + E + 2 * F_ + E, bias=False)  # q, k, v, o, gate, up, down
    rows = 2 * V + L * (inner + 2 * E) + E
    return Network(package.LlamaForCausalLM(config), words(), rows, L * split(4, 2))


def gemma2():
    package, config = transformers(
        "Gemma2", vocab_size=V, head_dim=6,
        **SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2},
    )  # fmt: skip
    inner = linear(4 * 6 + 2 * 6 + 2 * 6 + E + 2 * F_ + E, bias=False)
    rows = V + L * (inner + 4 * E) + E  # tied, four norms a layer
    return Network(package.Gemma2ForCausalLM(config), words(), rows, L * split(4, 2))


def gpt2():
    package, config = transformers(
        "GPT2", vocab_size=V, n_positions=6, n_embd=E, n_layer=L, n_head=H, n_inner=F_,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    inner = linear(3 * E + E + F_ + E)
    rows = V + 6 + L * (inner + 2 * LAYER_NORM) + LAYER_NORM
    return Network(package.GPT2LMHeadModel(config), words(), rows, L * fused())


def gpt_neox():
    package, config = transformers("GPTNeoX", vocab_size=V, max_position_embeddings=6, **SIZES)
    inner = linear(3 * E + E + F_ + E)
    rows = V + L * (inner + 2 * LAYER_NORM) + LAYER_NORM + V
    module, options = package.GPTNeoXForCausalLM(config), {"fused_qkv": "head_qkv"}
    return Network(module, words(), rows, L * fused(), options)


def t5():
    package, config = transformers(
        "T5", vocab_size=V, d_model=E, d_kv=3, d_ff=F_, num_layers=L, num_heads=H,
        relative_attention_num_buckets=4, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    attention, inner = 3 * (H * 3) + E + E, F_ + E + E  # with their norms
    rows = V + L * (attention + inner) + L * (2 * attention + inner) + 2 * (4 + E)
    module = package.T5ForConditionalGeneration(config)
    return Network(module, words(), rows, 3 * L * split())


def bart():
    package, config = transformers(
        "Bart", vocab_size=V, d_model=E, encoder_layers=L, decoder_layers=L,
        encoder_attention_heads=H, decoder_attention_heads=H, encoder_ffn_dim=F_,
        decoder_ffn_dim=F_, max_position_embeddings=6, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    attention = linear(4 * E) + LAYER_NORM
    inner = linear(F_ + E) + LAYER_NORM
    rows = V + 3 * L * attention + 2 * L * inner + 2 * (6 + 2 + LAYER_NORM)  # 2: BART's offset
    module = package.BartForConditionalGeneration(config)
    return Network(module, words(), rows, 3 * L * split(bias=True))


def opt():
    package, config = transformers(
        "OPT", vocab_size=V, hidden_size=E, ffn_dim=F_, num_hidden_layers=L, num_attention_heads=H,
        max_position_embeddings=6, word_embed_proj_dim=E,
    )  # fmt: skip
    rows = V + 6 + 2 + LAYER_NORM + L * (linear(4 * E + F_ + E) + 2 * LAYER_NORM)
    return Network(package.OPTForCausalLM(config), words(), rows, L * split(bias=True))


def bert(name="Bert", num_positions=6):
    package, config = transformers(
        name, vocab_size=V, max_position_embeddings=num_positions, **SIZES
    )
    embeddings = V + num_positions + config.type_vocab_size + LAYER_NORM
    layers = L * (linear(4 * E + F_ + E) + 2 * LAYER_NORM)
    rows = embeddings + layers + linear(E) + LAYER_NORM + V  # the head, tied to the words
    module = getattr(package, f"{name}ForMaskedLM")(config)
    return Network(module, words(), rows, L * split(bias=True))


def roberta():
    return bert("Roberta", 9)


PATCHES = {"image_size": 8, "patch_size": 4, "num_labels": 4}  # 4 patches


def vit():
    package, config = transformers("ViT", **PATCHES, **SIZES)
    embeddings = 1 + (1 + 4) + linear(E)  # a token, its and the patches' positions
    layers = L * (linear(4 * E + F_ + E) + 2 * LAYER_NORM)
    rows = embeddings + layers + LAYER_NORM + linear(4)
    module = package.ViTForImageClassification(config)
    return Network(module, images(), rows, L * split(bias=True))


def beit():
    package, config = transformers("Beit", use_relative_position_bias=True, **PATCHES, **SIZES)
    offsets = 3 * 3 + 3  # of 2 x 2 patches, and of the token
    biases = linear(4 * E + F_ + E) - E  # keys have none
    layers = L * (biases + 2 * E + 2 * LAYER_NORM + offsets)  # two scales
    rows = 1 + linear(E) + layers + LAYER_NORM + linear(4)
    module = package.BeitForImageClassification(config)
    return Network(module, images(), rows, L * (split(bias=True) - (H - 1)))


def swin():
    package, config = transformers(
        "Swin", image_size=8, patch_size=2, embed_dim=4, depths=[1, 1], num_heads=[2, 4],
        window_size=2, mlp_ratio=2.0, num_labels=4,
    )  # fmt: skip

    def block(width):  # a table of 3 x 3 offsets
        return linear(4 * width + 2 * width + width) + 2 * 2 * width + 9

    downsampling = linear(8, bias=False) + 2 * 16
    rows = linear(4) + 2 * 4 + block(4) + downsampling + block(8) + 2 * 8 + linear(4)
    module, extra = package.SwinForImageClassification(config), split(2, 2, bias=True)
    return Network(module, images(), rows, extra + split(4, 4, bias=True))


def mamba():
    package, config = transformers(
        "Mamba", vocab_size=V, hidden_size=E, state_size=3, num_hidden_layers=L, time_step_rank=2,
        conv_kernel=2,
    )  # fmt: skip
    inner = 2 * E
    # A_log, D, convolution, in, x (the step's rank, and B and C), the step, out, norm
    mixer = inner + inner + linear(inner) + 2 * inner + (2 + 3 + 3) + linear(inner) + E + E
    rows = V + L * mixer + E
    return Network(package.MambaForCausalLM(config), words(), rows, "expected attention")


def mixtral():
    package, config = transformers(
        "Mixtral", vocab_size=V, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
        **SIZES,
    )  # fmt: skip
    router, experts = 3, 2 * 3  # a row an expert, in each of two tensors
    rows = 2 * V + L * (E + 2 * (E // H) + E + router + experts + 2 * E) + E
    return Network(package.MixtralForCausalLM(config), words(), rows, L * split(H, 1))


def deepseek_v3():
    package, config = transformers(
        "DeepseekV3", vocab_size=V, moe_intermediate_size=8, n_routed_experts=4, n_group=2,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=4,
        q_lora_rank=6, qk_rope_head_dim=2, qk_nope_head_dim=4, v_head_dim=4,
        num_key_value_heads=H, n_shared_experts=1, **SIZES,
    )  # fmt: skip
    # Query and key-value through a narrow map, a norm and a wide one; then the output and norms.
    attention = 6 + 6 + H * (4 + 2) + (4 + 2) + 4 + H * (4 + 4) + E + 2 * E
    dense, shared = 2 * F_ + E, 2 * 8 + E
    router, experts = 4, 2 * 4
    rows = 2 * V + 2 * attention + dense + router + experts + shared + E
    refusal = r"model\.layers\.\{0,1\}\.self_attn \(DeepseekV3Attention, 2 heads\)"
    return Network(package.DeepseekV3ForCausalLM(config), words(), rows, refusal)


def wav2vec2():
    package, config = transformers(
        "Wav2Vec2", conv_dim=(4,), conv_stride=(4,), conv_kernel=(8,), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=6, num_labels=3, mask_time_prob=0.0,
        layerdrop=0.0, **SIZES,
    )  # fmt: skip
    batch = {"input_values": torch.randn(4, 64), "labels": torch.randint(3, (4,))}
    module, refusal = package.Wav2Vec2ForSequenceClassification(config), r"weight\.original0 \("
    return Network(module, batch, refusal, L * split(bias=True))


class LoRA(nn.Module):
    """A frozen linear map and the factors of its update, as in peft."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Linear(base.in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


class LoRAEmbedding(nn.Module):
    """The same of an embedding: the factors are raw parameters, that of the words transposed."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.factors = nn.ParameterDict(
            {
                "a": torch.randn(rank, base.num_embeddings),
                "b": torch.zeros(base.embedding_dim, rank),
            }
        )

    def forward(self, ids):
        a, b = self.factors["a"], self.factors["b"]
        return self.base(ids) + F.embedding(ids, a.T) @ b.T


def lora():
    network = llama()
    module, config = network.module, network.module.config
    module.requires_grad_(False)
    module.model.embed_tokens = LoRAEmbedding(module.model.embed_tokens)
    for layer in module.model.layers:
        layer.self_attn.q_proj = LoRA(layer.self_attn.q_proj)
        layer.self_attn.v_proj = LoRA(layer.self_attn.v_proj)
    rows = (2 + E) + L * (2 + E + 2 + 2 * config.hidden_size // 4)
    return Network(module, network.batch, rows, "expected attention with trainable parameters")


def graph_attention():
    package = pytest.importorskip("torch_geometric.nn", reason="needs lightning-linf[zoo]")

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = package.GATConv(3, 4, heads=2)
            self.second = package.GCNConv(2 * 4, 5)

        def forward(self, x, edges):
            return self.second(self.first(x, edges).relu(), edges)

    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    batch = {"x": torch.randn(4, 3), "edges": edges, "labels": torch.randint(5, (4,))}
    # a map to 2 heads of 4, two vectors a head, a bias; then a map to 5 and a bias
    rows = 8 + 2 * 2 + 8 + linear(5)

    def loss(module, batch):
        return F.cross_entropy(module(batch["x"], batch["edges"]), batch["labels"])

    return Network(Graph(), batch, rows, "expected attention", loss=loss)


def timm_vit():
    timm = pytest.importorskip("timm", reason="needs timm, and a torchvision for this torch")
    module = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=E, depth=L, num_heads=H, mlp_ratio=F_ / E, num_classes=4
    )
    layers = L * (linear(3 * E + E + F_ + E) + 2 * LAYER_NORM)
    rows = 1 + (1 + 4) + linear(E) + layers + LAYER_NORM + linear(4)

    def loss(module, batch):
        return F.cross_entropy(module(batch["pixel_values"]), batch["labels"])

    return Network(module, images(), rows, L * fused(), {"fused_qkv": "qkv_head"}, loss)


NETWORKS = [
    *(llama, gemma2, gpt2, gpt_neox, t5, bart, opt, bert, roberta, vit, beit, swin, mamba, mixtral),
    *(deepseek_v3, wav2vec2, lora, graph_attention, timm_vit),
]


@pytest.fixture(params=NETWORKS, ids=lambda make: make.__name__)
def make(request):
    """Make the same network each time."""

    def make():
        torch.manual_seed(0)
        return request.param()

    return make


class Training(lightning.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network.module
        self.loss = network.loss
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.network, batch)
        self.losses.append(loss.detach())
        return loss

    def probe_weight(self, batch):
        return 4

    def configure_optimizers(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-2)


def train(network, callbacks, tmp_path):
    module = Training(network)
    trainer = lightning.Trainer(
        callbacks=callbacks, max_steps=4, accumulate_grad_batches=2, logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    torch.manual_seed(1)  # of dropout
    batches = [network.batch] * 8
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module, torch.get_rng_state()


def test_training_is_bit_identical_under_the_three_monitors(make, tmp_path):
    plain, state = train(make(), [], tmp_path)
    network = make()
    named = {"row": network.rows, "head": network.extra_heads, "tensor": 0}
    partitions = [name for name, count in named.items() if isinstance(count, int)]
    monitors = [
        GradientHeterogeneityMonitor(1, on_error="raise"),
        GradientNoiseMonitor(1, on_error="raise"),
        LinfSmoothnessMonitor(
            2,
            partitions=partitions,
            num_probes=4,
            on_error="raise",
            **network.options,
            max_overhead=None,
        ),
    ]
    monitored, other_state = train(network, monitors, tmp_path)
    assert [len(monitor.history) for monitor in monitors] == [4, 4, 2]
    assert torch.equal(state, other_state)
    assert all(map(torch.equal, plain.losses, monitored.losses))
    ours, theirs = monitored.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(map(torch.equal, monitored.parameters(), plain.parameters()))


def test_default_report_has_the_rows_of_the_configuration(make):
    network = make()
    report = measure_geometry(network.module, [network.batch], loss=network.loss, num_probes=4)
    trainable = [p for p in network.module.parameters() if p.requires_grad]
    expected = {"coordinate": sum(p.numel() for p in trainable), "tensor": len(trainable)}
    if isinstance(network.rows, int):
        expected["row"] = network.rows
        assert "left_out" not in report.settings
    else:
        assert "row: Partition.of: expected modules that tell" in report.settings["left_out"]
        with pytest.raises(PlacementError, match=network.rows):
            Partition.of(network.module, "row")
    blocks = {name: block.num_blocks for name, block in report.smoothness.items()}
    assert blocks == expected | {"global": 1}
    assert report.one_one_norm > 0


def test_heads_are_those_of_the_configuration(make):
    network = make()
    if isinstance(network.extra_heads, str):
        with pytest.raises(PlacementError, match=network.extra_heads):
            Partition.of(network.module, "head", **network.options)
        return
    heads = Partition.of(network.module, "head", **network.options)
    num_tensors = sum(p.requires_grad for p in network.module.parameters())
    assert heads.num_blocks == num_tensors + network.extra_heads
    if network.options:
        with pytest.raises(PlacementError, match="expected `fused_qkv` for "):
            Partition.of(network.module, "head")


def test_lambda_max_reaches_the_largest_eigenvalue(make):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    network = make()
    with Landscape(network.module, [network.batch], loss=network.loss) as landscape:
        d = landscape.parameters.num_params

        def product(vector):
            return landscape.hvp(torch.from_numpy(vector.ravel()).float()).double().numpy()

        operator = linalg.LinearOperator((d, d), matvec=product, dtype="float64")
        (exact,) = linalg.eigsh(operator, k=1, tol=1e-5, return_eigenvectors=False)
        for seed in range(4):
            found = lambda_max(landscape.hvp, normal(d, seed=seed), max_hvps=40)
            # Products of float32 leave some 1e-5.
            assert found.value + found.residual > (1 - 1e-4) * abs(exact)
            assert found.value < (1 + 1e-4) * abs(exact)
