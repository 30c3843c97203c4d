import dataclasses
import importlib
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from support.ranks import assert_close, environment, in_two_processes, weights
from support.reports import trained_gpt2

from lightning_linf import measure_geometry
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.reparam import Rotation

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
if not (RECIPES / "gpt2.py").is_file():
    pytest.skip("recipes/ is not beside tests/: they are not in the wheel", allow_module_level=True)
for library in (
    "transformers",
    "tokenizers",
    "jsonargparse",
    "tensorboard",
    "matplotlib",
    "sklearn",
):
    pytest.importorskip(library, reason=f"the recipes need {library}: lightning-linf[recipes]")
if str(RECIPES) not in sys.path:
    sys.path.insert(0, str(RECIPES))  # as for `python recipes/gpt2.py`

compare = importlib.import_module("compare")
single_run = importlib.import_module("single_run")
sweep = importlib.import_module("sweep")
corpus = importlib.import_module("corpus")
gpt2 = importlib.import_module("gpt2")
report = importlib.import_module("report")
runs = importlib.import_module("runs")
settings = importlib.import_module("settings")
tables = importlib.import_module("tables")
token_data = importlib.import_module("token_data")
variants = importlib.import_module("variants")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Twelve documents, each with a word of its own, as files."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(60)]
    for number in range(12):
        text = " ".join([f"only{number:02d}", *draw.choices(words, k=120)])
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(texts, cache_dir, tmp_path):
    return gpt2.Config(
        name="test",
        data=str(texts),
        val_fraction=0.2,
        vocab_size=300,
        sequence_length=16,
        n_layer=1,
        n_head=2,
        n_embd=8,
        batch_size=4,
        micro_batch=2,
        max_steps=2,
        lr=1e-2,
        warmup_steps=1,
        val_every=2,
        val_sequences=3,
        log_every=1,
        checkpoint_every=1,
        heterogeneity_every=1,
        smoothness_every=2,
        num_probes=4,
        accelerator="cpu",
        runs_dir=str(tmp_path / "runs"),
        cache_dir=str(cache_dir),
    )


def logged(trainer, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trainer.log_dir)).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_two_steps_run_and_everything_is_reported(config, capsys):
    trainer = gpt2.main(config)
    output = capsys.readouterr().out
    assert trainer.global_step == 2
    assert set(logged(trainer, "train_loss")) == {0, 1}
    val_loss = logged(trainer, "val_loss")
    assert set(val_loss) == {1}
    assert logged(trainer, "val_perplexity")[1] == pytest.approx(np.exp(val_loss[1]), rel=1e-5)
    assert set(logged(trainer, "geometry/density")) == {0, 1}
    assert set(logged(trainer, "geometry/one_one_norm_per_param")) == {1}
    assert "Geometry of the loss" in output
    assert "Trained with adamw. The geometry is measured in the coordinates of" in output
    assert "At step 1 steepest descent along l-infinity" in output
    assert f"tensorboard --logdir {config.runs_dir}" in output
    folder = Path(trainer.log_dir) / "checkpoints"
    assert {file.name for file in folder.iterdir()} == {"last.ckpt", "best.ckpt"}
    assert f"Checkpoint: {folder / 'last.ckpt'}" in output
    command = f"measure {folder / 'last.ckpt'} --model gpt2.GPT2 --data token_data.TokenData"
    assert command in output


def test_logits_and_loss_are_those_of_transformers(config):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    module = gpt2.GPT2(config).eval()
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300, n_positions=16, n_layer=1, n_head=2, n_embd=8, bos_token_id=0,
            eos_token_id=0, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(module.model.state_dict())
    tokens = torch.randint(300, (3, 16))
    with torch.no_grad():
        outputs = theirs(tokens, labels=tokens)
        torch.testing.assert_close(module.model(tokens).logits, outputs.logits)
        torch.testing.assert_close(module.loss(tokens), outputs.loss)
    assert module.model.lm_head.weight is module.model.transformer.wte.weight


def interrupted_and_resumed(config, monkeypatch, *, at_step, file="last.ckpt"):
    class Interruption(Exception):
        pass

    def interrupt(self, batch, batch_idx):
        if self.global_step == at_step:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.GPT2, "on_train_batch_start", interrupt)
        with pytest.raises(Interruption):
            gpt2.main(dataclasses.replace(config, name="interrupted"))
    checkpoint = Path(config.runs_dir, "interrupted", "version_0", "checkpoints", file)
    return gpt2.main(dataclasses.replace(config, name="interrupted", resume=str(checkpoint)))


def assert_same_weights(trainer, other):
    for (name, weight), (_, expected) in zip(
        trainer.model.named_parameters(), other.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("file", "checkpoint_every", "first"),
    [
        ("last.ckpt", 3, 3),  # between two validations
        ("last.ckpt", 2, 4),  # just before the validation of the same step
        ("best.ckpt", 3, 4),  # just after it
    ],
)
def test_a_run_resumed_in_the_middle_equals_one_in_one_go(
    config, monkeypatch, file, checkpoint_every, first
):
    config = dataclasses.replace(
        config, max_steps=6, checkpoint_every=checkpoint_every, val_every=2, smoothness_every=2
    )
    whole = gpt2.main(config)
    resumed = interrupted_and_resumed(config, monkeypatch, at_step=5, file=file)
    assert_same_weights(resumed, whole)
    for tag, steps in (
        ("train_loss", range(6)),
        ("val_loss", (1, 3, 5)),
        ("lr-AdamW/pg1", range(6)),
        ("geometry/density", range(6)),
        ("geometry/one_one_norm_per_param", (1, 3, 5)),
    ):
        before, after = logged(whole, tag), logged(resumed, tag)
        assert set(before) == set(steps), tag
        assert after == {step: before[step] for step in steps if step >= first}, tag
    assert len(set(logged(whole, "train_loss").values())) == 6  # the batches are different ones
    histories = [
        [callback.history for callback in trainer.callbacks if hasattr(callback, "history")]
        for trainer in (whole, resumed)
    ]
    for old, new in zip(*histories, strict=True):
        assert [row["step"] for row in old] == [row["step"] for row in new]


def trained_plainly(config):
    """Fit without monitors, loggers and checkpoints."""
    trainer, module, data = gpt2.prepare(
        config, [], logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert trainer.global_step == config.max_steps
    return trainer


def trained_by_hand(config, make):
    """Train with the optimizer that ``make`` gives for the parameter groups, without Lightning.

    Returns the module and the loss of every step.
    """
    torch.manual_seed(config.seed)
    module = gpt2.GPT2(config)
    plain = module.configure_optimizers()
    (scale, _) = plain["lr_scheduler"]["scheduler"].lr_lambdas
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in plain["optimizer"].param_groups
    ]
    optimizer = make(groups)
    batches, _ = sequences(
        config.data, config.cache_dir, micro_batch=config.micro_batch, max_steps=config.max_steps
    )
    losses = []
    for step in range(config.max_steps):
        losses.append(0.0)
        for batch in batches[step * config.accumulate : (step + 1) * config.accumulate]:
            loss = module.loss(batch) / config.accumulate
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip_val)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * scale(step)
        optimizer.step()
        optimizer.zero_grad()
    return module, losses


BETAS = {"betas": (0.9, 0.95)}


@pytest.mark.parametrize(
    ("choices", "make"),
    [
        ({}, lambda groups: torch.optim.AdamW(groups, **BETAS)),
        ({"optimizer": "sgd"}, lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)),
        ({"optimizer": "adasgd"}, lambda groups: AdaSGD(groups, **BETAS)),
        (
            {"optimizer": "blockwise_adam"},
            lambda groups: BlockwiseAdam(groups, **BETAS, partition="tensor"),
        ),
        ({"optimizer": "signum"}, lambda groups: Signum(groups, momentum=0.9)),
        (
            {"rotation": "global", "rotation_strength": 0.5},
            lambda groups: Reparameterized(
                groups,
                lambda params: torch.optim.AdamW(params, **BETAS),
                Rotation("global", strength=0.5),
            ),
        ),
        (
            {"optimizer": "adam", "rotation": "tensor", "weight_decay": 0.0},
            lambda groups: Reparameterized(
                groups, lambda params: torch.optim.Adam(params, **BETAS), Rotation("tensor")
            ),
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_geometry_trains_like_its_optimizer_in_a_plain_loop(config, choices, make):
    config = dataclasses.replace(config, max_steps=3, **choices)
    expected, _ = trained_by_hand(config, make)
    module = trained_plainly(config).lightning_module
    torch.testing.assert_close(module.state_dict(), expected.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_decay_of_adam_and_sgd_is_a_part_of_the_gradient(config, optimizer):
    decayed = trained_plainly(dataclasses.replace(config, optimizer=optimizer))
    (group, _) = decayed.optimizers[0].param_groups
    assert group["weight_decay"] == 0.1
    assert not group.get("decoupled_weight_decay", False)


PARTITIONS = ("coordinate", "row", "column", "head", "tensor", "module", "global")
ROTATIONS = ("global", "tensor", "row", "column")


@pytest.mark.slow
@pytest.mark.parametrize("rotation", [None, *ROTATIONS])
@pytest.mark.parametrize(
    "choices",
    [{"optimizer": name} for name in ("adam", "adamw", "sgd", "adasgd", "signum")]
    + [{"optimizer": "blockwise_adam", "partition": name} for name in PARTITIONS],
    ids=lambda choices: "-".join(choices.values()),
)
def test_every_optimizer_trains_in_every_coordinates(config, choices, rotation):
    trainer = trained_plainly(dataclasses.replace(config, rotation=rotation, **choices))
    assert math.isfinite(trainer.callback_metrics["val_loss"])
    optimizer = trainer.optimizers[0]
    if rotation is not None:
        assert optimizer.reparameterization == Rotation(rotation)
        optimizer = optimizer.inner
    assert type(optimizer).__name__.lower() == choices["optimizer"].replace("_", "")
    if "partition" in choices:
        partition = optimizer.partition
        assert getattr(partition, "name", partition) == choices["partition"]


def test_a_swap_halfway_starts_like_adamw_and_goes_on_otherwise(config):
    config = dataclasses.replace(config, max_steps=4)
    adamw = report.LossRecorder()
    swapped = report.LossRecorder()
    for recorder, changes in ((adamw, {}), (swapped, {"rotation": "global", "swap_at": 2})):
        trainer, module, data = gpt2.prepare(
            dataclasses.replace(config, **changes), [recorder], logger=False,
            enable_checkpointing=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, data)
    assert swapped.losses[:3] == adamw.losses[:3]  # the third is that of the weights at the swap
    assert swapped.losses[3] != adamw.losses[3]


def test_the_rate_after_a_swap_keeps_the_schedule_from_a_peak_of_its_own(config):
    rates = {}
    for choices in ({}, {"optimizer": "sgd", "swap_at": 2, "swap_lr": 30 * config.lr}):
        trainer = trained_plainly(dataclasses.replace(config, max_steps=4, **choices))
        rates[len(choices)] = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates[3] == pytest.approx([30 * rate for rate in rates[0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "checkpoint_every", "at_step"),
    [
        ({"optimizer": "adam", "rotation": "global"}, 2, 5),
        ({"optimizer": "blockwise_adam", "partition": "row", "rotation": "tensor"}, 2, 5),
        ({"optimizer": "adasgd"}, 2, 5),
        *(
            ({**choices, "swap_at": 3}, checkpoint_every, at_step)
            for choices in (
                {"optimizer": "adamw", "rotation": "column"},
                {"optimizer": "blockwise_adam", "partition": "head"},
                {"optimizer": "sgd", "swap_lr": 0.3},
            )
            for checkpoint_every, at_step in ((2, 3), (3, 5), (2, 5))  # before, at, after the swap
        ),
    ],
)
def test_a_resumed_run_in_another_geometry_equals_one_in_one_go(
    config, monkeypatch, choices, checkpoint_every, at_step
):
    config = dataclasses.replace(
        config, max_steps=6, checkpoint_every=checkpoint_every, smoothness_every=6, **choices
    )
    whole = gpt2.main(config)
    resumed = interrupted_and_resumed(config, monkeypatch, at_step=at_step)
    assert_same_weights(resumed, whole)
    before, after = (logged(trainer, "train_loss") for trainer in (whole, resumed))
    first = at_step - at_step % checkpoint_every
    assert after == {step: before[step] for step in range(first, 6)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning's own
@pytest.mark.parametrize("choices", [{}, {"optimizer": "blockwise_adam", "rotation": "global"}])
def test_two_processes_train_as_one_and_go_on_where_they_stopped(config, choices, tmp_path):
    config = dataclasses.replace(config, n_layer=2, max_steps=4, lr=1e-3, **choices)
    last = tmp_path / "last.ckpt"

    def fit(config, stop_at=0, **options):
        class Stop(Callback):
            def on_train_batch_start(self, trainer, *_):
                if stop_at and trainer.global_step == stop_at:
                    trainer.save_checkpoint(last, weights_only=False)
                    trainer.should_stop = True  # after this step

        trainer, module, data = gpt2.prepare(
            config, [Stop()], logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, data, **options)
        return weights(module), float(trainer.callback_metrics.get("val_loss", 0.0))

    def on_rank(rank):
        os.environ.update(environment(rank))
        shared = dataclasses.replace(config, devices=2, strategy="fsdp2")
        in_one_go = fit(shared)
        stopped = fit(shared, stop_at=2)
        resumed = fit(shared, ckpt_path=last)
        on_ddp = fit(dataclasses.replace(shared, strategy="ddp"))
        return in_one_go, stopped, resumed, on_ddp

    gpt2.prepare(config, [])[2].prepare_data()  # else both would build it
    results = in_two_processes(on_rank, tmp_path)
    expected, expected_loss = fit(config)
    for in_one_go, stopped, resumed, on_ddp in results:
        with pytest.raises(AssertionError):
            assert_close(stopped[0], in_one_go[0])
        for ours, loss in (in_one_go, on_ddp):
            assert_close(ours, expected, rtol=1e-3, atol=1e-5)  # float32, and Adam enlarges it
            assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert_close(resumed[0], in_one_go[0], rtol=0, atol=0)


@pytest.mark.slow
def test_a_rotated_checkpoint_loads_into_plain_transformers(config, capsys):
    from transformers import GPT2LMHeadModel

    trainer = gpt2.main(dataclasses.replace(config, optimizer="adam", rotation="global"))
    output = " ".join(capsys.readouterr().out.split())
    assert "Trained with adam in rotated coordinates (global). The geometry is" in output
    path = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    plain = GPT2LMHeadModel(trainer.lightning_module.model.config).eval()
    plain.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    batches = list(trainer.datamodule.val_dataloader())
    with torch.no_grad():
        losses = torch.stack([plain(batch, labels=batch).loss for batch in batches])
    weights = torch.tensor([len(batch) for batch in batches])
    mean = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(trainer.callback_metrics["val_loss"], mean)


def test_last_means_the_newest_checkpoint_of_the_name(config):
    finished = gpt2.main(config)
    newest = Path(finished.log_dir) / "checkpoints" / "last.ckpt"
    with pytest.raises(settings.RecipeError, match=re.escape(f"steps left, got '{newest}'")):
        gpt2.main(dataclasses.replace(config, resume="last"))


def sequences(texts, cache_dir, *, rank=0, num_ranks=1, micro_batch=4, step=0, max_steps=5):
    data = token_data.TokenData(
        str(texts), cache_dir=str(cache_dir), vocab_size=300, val_fraction=0.2, sequence_length=16,
        batch_size=4, micro_batch=micro_batch, max_steps=max_steps, val_sequences=3, seed=0,
    )  # fmt: skip
    data.trainer = types.SimpleNamespace(
        global_step=step, global_rank=rank, world_size=num_ranks, **{"lightning_module": None}
    )
    data.prepare_data()
    data.setup("fit")
    return list(data.train_dataloader()), list(data.val_dataloader())


def test_batches_from_a_later_step_are_those_of_the_run(texts, cache_dir):
    run, _ = sequences(texts, cache_dir)
    later, _ = sequences(texts, cache_dir, step=3)
    assert [batch.shape for batch in run] == [(4, 16)] * 5
    assert len(later) == 5  # Lightning's count of batches goes on from the checkpoint
    torch.testing.assert_close(later[:2], run[3:])


def test_a_step_has_the_same_sequences_on_any_number_of_ranks(texts, cache_dir):
    run, _ = sequences(texts, cache_dir)
    ranks = [sequences(texts, cache_dir, rank=r, num_ranks=2, micro_batch=1)[0] for r in range(2)]
    for step, batch in enumerate(run):
        shared = torch.cat([part for rank in ranks for part in rank[2 * step : 2 * step + 2]])
        assert sorted(shared.tolist()) == sorted(batch.tolist())


def test_ranks_share_out_the_validation_sequences(texts, cache_dir):
    _, alone = sequences(texts, cache_dir)
    ranks = [sequences(texts, cache_dir, rank=rank, num_ranks=2)[1] for rank in range(2)]
    shared = [sequence.tolist() for rank in ranks for batch in rank for sequence in batch]
    assert len(shared) == 3
    assert sorted(shared) == sorted(torch.cat(alone).tolist())


def read_corpus(folder):
    """Read the documents of a corpus back, as two lists of text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    splits = []
    for split in ("train", "validation"):
        tokens = np.fromfile(folder / f"{split}.bin", dtype=np.uint16)
        ends = np.flatnonzero(tokens == corpus.END_OF_TEXT_ID)
        splits.append([tokenizer.decode(part) for part in np.split(tokens, ends + 1)[:-1]])
        assert ends[-1] == len(tokens) - 1
    return splits


def build(data, cache_dir, vocab_size=300, val_fraction=0.2):
    folder = corpus.cache_folder(str(data), str(cache_dir), vocab_size, val_fraction)
    corpus.build(str(data), folder, vocab_size, val_fraction)
    return folder


def test_every_document_is_on_exactly_one_side(texts, tmp_path):
    train, validation = read_corpus(build(texts, tmp_path))
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(file.read_text() for file in texts.iterdir())
    assert [text[:6] for text in validation] == ["only01", "only06", "only11"]  # 2nd of each five


def test_the_corpus_repeats_and_its_address_follows_the_content(texts, tmp_path):
    first, second = build(texts, tmp_path / "a"), build(texts, tmp_path / "b")
    assert first.name == second.name
    for name in ("train.bin", "validation.bin", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in texts.iterdir():
        (copy / file.name).write_text(file.read_text())
    assert corpus.cache_folder(str(copy), str(tmp_path), 300, 0.2).name == first.name
    (copy / "00.txt").write_text("other")
    assert corpus.cache_folder(str(copy), str(tmp_path), 300, 0.2).name != first.name
    assert corpus.cache_folder(str(texts), str(tmp_path), 301, 0.2).name != first.name


def test_an_interrupted_build_leaves_nothing(texts, tmp_path, monkeypatch):
    def interrupted(texts, vocab_size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "train_tokenizer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(texts, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert build(texts, tmp_path).is_dir()


def test_a_build_that_another_process_finished_first_is_kept(texts, tmp_path, monkeypatch):
    finished = build(texts, tmp_path)
    with monkeypatch.context() as patch:  # as if it was not there yet at the first look
        looks = iter([False, True])
        patch.setattr(Path, "exists", lambda self: next(looks))
        corpus.build(str(texts), finished, 300, 0.2)
    assert [folder.name for folder in tmp_path.iterdir()] == [finished.name]


def test_a_file_that_is_alone_is_cut_in_two(tmp_path):
    file = tmp_path / "only.txt"
    file.write_text("abcde " * 100)
    train, validation = read_corpus(build(file, tmp_path))
    assert [len(train[0]), len(validation[0])] == [480, 120]
    assert train[0] + validation[0] == file.read_text()


def test_binary_and_empty_files_are_left_out_and_bad_bytes_replaced(tmp_path):
    folder = tmp_path / "data"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "a.txt").write_text("hidden")
    (folder / "binary").write_bytes(b"a\0b")
    (folder / "empty").write_bytes(b"")
    (folder / "latin").write_bytes(b"caf\xe9 <|endoftext|>")
    (folder / "text").write_text("plain")
    train, validation = read_corpus(build(folder, tmp_path))
    assert train == ["caf\ufffd <|endoftext|>"]  # the mark in it is text, not an end
    assert validation == ["plain"]


def test_globs_and_home_are_expanded(texts, monkeypatch):
    monkeypatch.setenv("HOME", str(texts.parent))
    named = corpus.find_files(f"~/{texts.name}/0*.txt")
    assert [name for name, _ in named] == [f"{number:02d}.txt" for number in range(10)]


def test_the_standard_library_comes_without_its_tests():
    names = [name for name, _ in corpus.find_files("stdlib")]
    assert "json/decoder.py" in names
    assert names == sorted(names)
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}


class HubDataset:
    column_names = ("text",)

    def iter(self, batch_size):
        yield {"text": ["first document", "second document"]}
        yield {"text": ["third document"]}


def test_hub_documents_fall_back_to_the_converted_copy(monkeypatch):
    calls = []

    def load_dataset(path, **choice):
        calls.append((path, choice))
        if "revision" not in choice:
            raise RuntimeError("Dataset scripts are no longer supported, but found it.py")
        return HubDataset()

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    documents = list(corpus.read_documents("hf:someone/text:en", 0.1))
    assert documents == ["first document", "second document", "third document"]
    assert calls[-1] == (
        "someone/text",
        {"name": "en", "split": "train", "revision": "refs/convert/parquet"},
    )


@pytest.mark.parametrize(
    ("load_dataset", "message"),
    [
        (None, r"pip install 'lightning-linf\[hub\]'"),
        (lambda path, **choice: 1 / 0, "got 'ZeroDivisionError: division by zero'. Check the name"),
        (lambda path, **choice: types.SimpleNamespace(column_names=["a"]), "have a column 'text'"),
    ],
)
def test_hub_refusals(monkeypatch, load_dataset, message):
    module = types.SimpleNamespace(load_dataset=load_dataset) if load_dataset else None
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(settings.RecipeError, match=message):
        list(corpus.read_documents("hf:name", 0.1))


@pytest.mark.parametrize(
    ("split", "contents", "message"),
    [
        ("training", ["ab", "cd " * 500], "at least 16 train tokens .* got 2 in"),
        ("validation", ["ab " * 500, "cd"], "at least 16 validation tokens .* Give more text"),
        ("all", ["", ""], "at least 16 train tokens .* got 0 in"),
    ],
)
def test_too_little_text_is_refused(config, tmp_path, split, contents, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number}.txt").write_text(content)
    with pytest.raises(settings.RecipeError, match=message):
        gpt2.main(dataclasses.replace(config, data=str(folder)))


def test_missing_text_is_refused(config, tmp_path):
    with pytest.raises(settings.RecipeError, match=r"expected 'stdlib'.* got .*nowhere.* --data"):
        gpt2.main(dataclasses.replace(config, data=str(tmp_path / "nowhere" / "*.txt")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "n_layer: expected at least 1, got 0. Give a positive number"),
        ({"devices": -1}, "devices: expected at least 1, got -1"),
        ({"val_fraction": 0.6}, r"val_fraction: expected a share in \(0, 0.5\], got 0.6. Try 0.1"),
        ({"vocab_size": 256}, "vocab_size: expected at least 257"),
        ({"sequence_length": 1}, "sequence_length: expected at least 2"),
        ({"n_embd": 66}, "n_embd: expected a multiple of n_head=4, got 66"),
        ({"dropout": 1.0}, r"dropout: expected a chance in \[0, 1\)"),
        ({"batch_size": 24}, "batch_size: expected a multiple of 16 = micro_batch x devices"),
        (
            {"strategy": "fsdp2", "precision": "16-mixed"},
            "precision: expected 32-true or bf16-mixed beside --strategy fsdp2, got '16-mixed'",
        ),
        ({"devices": 3}, "batch_size: expected a multiple of 48"),
        ({"optimizer": "lion"}, "optimizer: expected one of adam, .*signum, got 'lion'. Choose"),
        ({"optimizer": None}, "optimizer: expected one of adam, .*, got None"),
        ({"rotation": "half"}, "rotation: expected one of global, .*, got 'half'"),
        (
            {"optimizer": "blockwise_adam", "partition": "layer"},
            "partition: expected one of coordinate, .*, got 'layer'",
        ),
        ({"precision": "64"}, "precision: expected one of 32-true, .*, got '64'"),
        (
            {"optimizer": "adam", "partition": "row"},
            "partition: expected none beside --optimizer adam, got 'row'. Choose --optimizer bl",
        ),
        (
            {"rotation": "global", "rotation_strength": 1.5},
            r"rotation_strength: expected in \[0, 1\], got 1.5",
        ),
        ({"rotation_strength": 0.5}, "rotation_strength: expected 1 without a rotation, got 0.5"),
        ({"optimizer": "sgd", "swap_at": -1}, "swap_at: expected at least 0 and less than"),
        ({"optimizer": "sgd", "swap_at": 500}, "swap_at: expected at least 0 .*=500, got 500"),
        ({"optimizer": "sgd", "swap_lr": 1.0}, "swap_lr: expected none without --swap_at, got 1"),
        ({"optimizer": "sgd", "swap_at": 5, "swap_lr": 0.0}, "swap_lr: expected more than 0"),
        ({"swap_at": 5}, "swap_at: expected 0 where all is plain AdamW, got 5. Choose an --opt"),
        ({"lr": 0.0}, "lr: expected more than 0"),
        ({"warmup_steps": 500}, "warmup_steps: expected at least 0 and less than max_steps=500"),
        ({"betas": (0.9, 1.0)}, r"betas: expected two in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay: expected at least 0"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val: expected at least 0"),
        ({"num_probes": 3}, "num_probes: expected at least 4"),
        ({"seed": -1}, "seed: expected in"),
    ],
)
def test_wrong_choices_are_refused(changes, message):
    with pytest.raises(settings.RecipeError, match=message):
        gpt2.Config(**changes)


def parse(*args):
    return settings.parse(gpt2.PRESETS, args, "Train.")


def test_no_argument_means_tiny():
    assert parse() == gpt2.tiny() == gpt2.Config()


def test_flags_win_over_yaml_over_preset(tmp_path):
    file = tmp_path / "choices.yaml"
    file.write_text("preset: small\nlr: 0.5\nmax_steps: 7000\n")
    expected = dataclasses.replace(gpt2.small(), lr=0.25, max_steps=7000)
    # a flag before the file wins, too
    assert parse("--lr", "0.25", "--config", str(file)) == expected
    assert parse(f"--config={file}", "--lr=0.25") == expected
    other = dataclasses.replace(gpt2.gpt2_124m(), lr=0.5, max_steps=7000)
    assert parse("--preset", "124m", "--config", str(file)) == other


def test_names_of_flags_may_have_dashes(tmp_path):
    expected = dataclasses.replace(
        gpt2.tiny(), rotation="row", rotation_strength=0.5, swap_at=7, name="--a-b", data="c-d"
    )
    args = ["--rotation", "row", "--rotation-strength=0.5", "--swap-at", "7", "--data", "c-d"]
    assert parse(*args, "--name=--a-b") == expected


def test_every_field_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--preset", "small", "--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(gpt2.Config):
        assert f"--{field.name} " in text
    assert "Transformer blocks. (type: int, default: 6)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--n_layer", "x"], "n_layer"),
        (["--n_embd", "66"], "error: n_embd: expected a multiple of n_head=4, got 66"),
        (["--preset", "huge"], "preset"),
        (["--preset"], "expected one argument"),
        (["--config", "nowhere.yaml"], "File does not exist"),
        (["--n_lay", "3"], "unrecognized arguments: --n_lay"),
        (["--optimizer", "lion"], "optimizer"),
        (["--rotation-strength", "0.5"], "rotation_strength: expected 1 without a rotation"),
        (["--precision", "8"], "precision"),
    ],
)
def test_a_wrong_command_line_ends_with_a_reason(args, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(*args)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["n_lyer: 3", "[", "preset: huge"])
def test_a_wrong_file_ends_with_a_reason(content, tmp_path, capsys):
    file = tmp_path / "choices.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit):
        parse("--config", str(file))
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 32])
def test_124m_takes_half_a_million_tokens_a_step(devices):
    config = dataclasses.replace(gpt2.gpt2_124m(), devices=devices)
    assert config.micro_batch * devices * config.accumulate * config.sequence_length == 2**19


def test_sizes_of_the_presets():
    sizes = {}
    for name, preset in gpt2.PRESETS.items():
        with torch.device("meta"):
            module = gpt2.GPT2(preset())
        sizes[name] = sum(p.numel() for p in module.parameters())
    assert sizes == {"tiny": 370_432, "small": 13_891_584, "124m": 124_475_904}


def test_only_matrices_decay_and_the_rate_warms_up_and_falls_to_a_tenth(config):
    config = dataclasses.replace(config, max_steps=100, warmup_steps=9, lr=1.0)
    module = gpt2.GPT2(config)
    chosen = module.configure_optimizers()
    matrices, vectors = chosen["optimizer"].param_groups
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert matrices["betas"] == (0.9, 0.95)
    grouped = matrices["params"] + vectors["params"]
    assert {id(p) for p in grouped} == {id(p) for p in module.parameters()}
    assert len(grouped) == len(list(module.parameters()))

    assert chosen["lr_scheduler"]["interval"] == "step"
    (scale,) = set(chosen["lr_scheduler"]["scheduler"].lr_lambdas)
    assert [scale(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [scale(step) for step in (9 + 91 / 2, 100)] == pytest.approx([0.55, 0.1])


def test_resume_refusals(config, tmp_path):
    def resume(**changes):
        return gpt2.main(dataclasses.replace(config, **changes))

    with pytest.raises(settings.RecipeError, match="resume: expected a checkpoint, or 'last' with"):
        resume(resume="last")
    broken = tmp_path / "broken.ckpt"
    broken.write_text("not a checkpoint")
    with pytest.raises(settings.RecipeError, match="expected a checkpoint of this recipe"):
        resume(resume=str(broken))
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(settings.RecipeError, match=r"of this recipe, got .*other.ckpt.*KeyError"):
        resume(resume=str(other))
    saved = {"config": dataclasses.asdict(config)}
    torch.save({"hyper_parameters": saved, "global_step": 1}, other)
    with pytest.raises(settings.RecipeError, match="strategy: expected 'auto' as in the run of"):
        resume(resume=str(other), strategy="fsdp2")
    torch.save({"hyper_parameters": saved, "global_step": 2}, other)
    with pytest.raises(
        settings.RecipeError, match=r"has some of its 2 steps left, got .* complete"
    ):
        resume(resume=str(other))
    with pytest.raises(
        settings.RecipeError, match=r"lr: expected 0.01 as in the run of .* got 0.5"
    ):
        resume(resume=str(other), lr=0.5)
    for changes in (
        {"optimizer": "sgd"}, {"optimizer": "blockwise_adam", "partition": "row"},
        {"rotation": "global"},
    ):  # fmt: skip
        name, value = next(iter(changes.items()))
        with pytest.raises(settings.RecipeError, match=f"{name}: expected .* got '{value}'"):
            resume(resume=str(other), **changes)


def test_a_checkpoint_gives_module_and_data_back(config):
    trainer = gpt2.main(config)
    path = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
    module = gpt2.GPT2.load_from_checkpoint(path)
    assert module.config == config
    torch.testing.assert_close(module.state_dict(), trainer.lightning_module.state_dict())
    data = token_data.TokenData.load_from_checkpoint(path)
    assert vars(data.hparams) == vars(trainer.datamodule.hparams)
    assert (data.folder, data.batch_size) == (trainer.datamodule.folder, config.batch_size)


def rows(lower=1.25, upper=1.5, step=99):
    smoothness = {
        "step": step, "one_one_norm_per_param": 2.0, "one_one_norm_relative_error": 0.1,
        "operator_norm_lower/coordinate": 1.25, "operator_norm_upper/coordinate": 1.5,
        "advantage_lower/coordinate": lower, "advantage_upper/coordinate": upper,
        "lambda_max": 8.0, "lambda_max_relative_error": 0.01,
    }  # fmt: skip
    return [smoothness], [{"step": 49, "density": 9.0}, {"step": 89, "density": 0.5}]


def test_the_sentence_is_that_of_the_report():
    measured, found = rows()[0], trained_gpt2()
    sentence = report.geometry_sentence(measured, found)
    assert sentence == f"At step 99: {found.verdict} {found.recommend().sentence}"
    assert "step 99, before this training was resumed" in report.geometry_sentence(measured, None)


@pytest.mark.parametrize(
    ("choices", "start"),
    [
        ({}, "Trained with adamw. The geometry is measured in the coordinates of the parameters."),
        ({"optimizer": "blockwise_adam"}, "Trained with blockwise_adam (blocks: tensor). The"),
        (
            {"optimizer": "blockwise_adam", "partition": "row", "rotation": "global"},
            "Trained with blockwise_adam (blocks: row) in rotated coordinates (global). The",
        ),
        (
            {"rotation": "row", "rotation_strength": 0.25, "swap_at": 7},
            "Trained with adamw for 7 steps, then adamw in rotated coordinates (row, 0.25). The",
        ),
    ],
)
def test_the_report_says_what_trained(choices, start):
    assert report.optimizer_sentence(gpt2.Config(**choices)).startswith(start)


def test_the_sentence_says_that_nothing_was_measured():
    assert "was not measured" in report.geometry_sentence([], None)


def test_the_table_has_the_latest_values_of_the_past_and_fits_80_columns():
    from rich.console import Console

    losses = report.LossHistory(1)
    losses.train = {99_999: 10.5, 100_000: 9.0}
    losses.validation = {49: 10.25, 149_999: 9.0}
    measured, heterogeneity = rows(0.012345, 0.12345, step=99_999)
    measured[0] |= {
        "operator_norm_lower/coordinate": 0.0012345, "operator_norm_upper/coordinate": 0.0023456,
        "one_one_norm_per_param": 0.0045678, "lambda_max": 0.012345,
    }  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.geometry_table(measured, heterogeneity, losses))
    row = next(line for line in console.export_text().splitlines() if "99999" in line)
    assert " ".join(row.split()) == (
        "99999 10.500 10.250 0.0046 ±10% 0.0012-0.0023 0.0123 +1% 0.500 0.0123 to 0.123"
    )


CLASSES = ("gpt2.GPT2", "token_data.TokenData")


def test_the_command_for_the_full_report_starts_from_the_present_folder(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "lightning-linf"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.chdir(RECIPES.parent)
    rest = "measure 'a b/last.ckpt' --model gpt2.GPT2 --data token_data.TokenData"
    command = report.measure_command(Path("a b", "last.ckpt"), *CLASSES)
    assert command == f"PYTHONPATH=recipes {program} {rest}"
    monkeypatch.chdir(tmp_path)
    command = report.measure_command(Path("a b", "last.ckpt"), *CLASSES)
    assert command == f"PYTHONPATH={RECIPES} bin/lightning-linf {rest}"


def test_the_tensorboard_command_fits_the_environment(tmp_path, monkeypatch):
    program = tmp_path / ".venv" / "bin" / "tensorboard"
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.chdir(tmp_path)
    assert report.tensorboard_command("runs").startswith("pip install")
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert report.tensorboard_command("runs") == ".venv/bin/tensorboard --logdir runs"
    monkeypatch.setenv("PATH", str(program.parent))
    assert report.tensorboard_command("runs") == "tensorboard --logdir runs"


SGD = variants.Variant("sgd", "global, l2", {"optimizer": "sgd"}, (1.0, 1e35))
PAIR = (dataclasses.replace(variants.ADAM, factors=(0.1, 1.0)), SGD)


@pytest.fixture
def comparison(config):
    return dataclasses.replace(config, weight_decay=0.0, max_steps=3)


def test_variants_of_the_comparison_are_what_they_are_called(config):
    found = {}
    for variant in variants.ALL:
        trainer = trained_plainly(
            dataclasses.replace(
                config, weight_decay=0.0, max_steps=1, warmup_steps=0, **variant.choices
            )
        )
        (optimizer,) = trainer.optimizers
        inner = getattr(optimizer, "inner", optimizer)
        coordinates = getattr(optimizer, "reparameterization", None)
        partition = getattr(inner, "partition", None)
        partition = getattr(partition, "name", partition)
        assert variant.partition in (partition, "coordinate", "global")
        found[variant.optimizer, variant.geometry] = (type(inner), coordinates, partition)
    assert found == {
        ("adam", "coordinate"): (torch.optim.Adam, None, None),
        ("adam", "coordinate, rotated 0.25"): (
            torch.optim.Adam, Rotation("global", strength=0.25), None,
        ),
        ("adam", "coordinate, rotated 0.5"): (
            torch.optim.Adam, Rotation("global", strength=0.5), None,
        ),
        ("adam", "coordinate, rotated"): (torch.optim.Adam, Rotation("global"), None),
        ("adam", "coordinate, rotated tensor"): (torch.optim.Adam, Rotation("tensor"), None),
        ("blockwise_adam", "row"): (BlockwiseAdam, None, "row"),
        ("blockwise_adam", "head"): (BlockwiseAdam, None, "head"),
        ("blockwise_adam", "tensor"): (BlockwiseAdam, None, "tensor"),
        ("adasgd", "global"): (AdaSGD, None, "global"),
        ("sgd", "global, l2"): (torch.optim.SGD, None, None),
        ("sgd", "global, l2, rotated"): (torch.optim.SGD, Rotation("global"), None),
    }  # fmt: skip
    assert set(variants.FEW) <= set(variants.ALL)


class Prepare:
    """Prepare runs, note their learning rates, and stop before the one with number ``end``."""

    def __init__(self, end=None):
        self.rates = []
        self.end = end

    def __call__(self, config, callbacks, **options):
        if len(self.rates) == self.end:
            raise KeyboardInterrupt
        self.rates.append(config.lr)
        return gpt2.prepare(config, callbacks, **options)


def test_an_interrupted_comparison_goes_on_and_finished_runs_are_not_repeated(comparison, capsys):
    (whole,) = compare.main(dataclasses.replace(comparison, name="whole"), gpt2.prepare, PAIR)
    first, second, third = Prepare(end=3), Prepare(), Prepare()
    with pytest.raises(KeyboardInterrupt):
        compare.main(comparison, first, PAIR)
    (resumed,) = compare.main(comparison, second, PAIR)
    assert (first.rates, second.rates) == ([0.001, 0.01, 0.01], [1e33])

    def losses(result):
        return [[(o.lr, o.train_loss, o.val_loss) for o in row] for row in result.sweep.values()]

    assert losses(resumed) == losses(whole)
    capsys.readouterr()
    assert compare.main(comparison, third, PAIR) == [resumed]
    assert third.rates == []
    assert "1/4 adam, lr 0.001, seed 0: train " in (output := capsys.readouterr().out)
    assert output.count("kept from before") == 4
    assert "After 3 steps, by optimizer" in output

    files = sorted(Path(comparison.runs_dir, comparison.name).glob("*-lr-*.json"))
    assert len(files) == 4
    records = [json.loads(file.read_text()) for file in files]
    assert {(r["config"]["optimizer"], r["config"]["lr"]) for r in records} == {
        ("adam", 0.001), ("adam", 0.01), ("sgd", 0.01), ("sgd", 1e33),
    }  # fmt: skip
    changed = Prepare(end=0)
    with pytest.raises(KeyboardInterrupt):
        compare.main(dataclasses.replace(comparison, seed=1), changed, PAIR)
    files[0].write_text("{")
    with pytest.raises(settings.RecipeError, match=r"compare: expected a finished .* Delete it"):
        compare.main(comparison, gpt2.prepare, PAIR)


def test_other_text_under_the_same_name_is_another_run(comparison, tmp_path):
    file = tmp_path / "only.txt"
    file.write_text("abcde " * 500)
    comparison = dataclasses.replace(comparison, data=str(file))
    for text, number in (("abcde ", 1), ("abcde ", 0), ("abcdf ", 1)):
        file.write_text(text * 500)
        prepare = Prepare()
        compare.main(comparison, prepare, [dataclasses.replace(SGD, factors=(1.0,))])
        assert len(prepare.rates) == number


def test_a_run_that_diverged_stops_early_and_is_shown_as_such(comparison, capsys):
    comparison = dataclasses.replace(comparison, max_steps=50)
    steps = []

    def prepare(config, callbacks, **options):
        trainer, module, data = gpt2.prepare(config, callbacks, **options)
        steps.append(trainer)
        return trainer, module, data

    (result,) = compare.main(comparison, prepare, [SGD])
    ((good, lost),) = result.sweep.values()
    assert [trainer.global_step for trainer in steps] == [50, 10]
    assert (lost.train_loss, lost.val_loss) == (None, None)
    assert math.isfinite(good.train_loss)
    output = capsys.readouterr().out
    assert "2/2 sgd, lr 1e+33, seed 0: train diverged, val diverged, " in output
    assert "1e+33: diverged" in output
    assert math.isfinite(good.seconds_per_step)


def test_the_losses_of_a_run_are_those_of_a_plain_loop(comparison):
    comparison = dataclasses.replace(comparison, max_steps=25)
    (result,) = compare.main(
        comparison, gpt2.prepare, [dataclasses.replace(variants.ADAM, factors=(1.0,))]
    )
    ((outcome,),) = result.sweep.values()
    module, losses = trained_by_hand(comparison, lambda groups: torch.optim.Adam(groups, **BETAS))
    assert outcome.train_loss == pytest.approx(np.mean(losses[-20:]), rel=1e-6)
    _, validation = sequences(comparison.data, comparison.cache_dir)
    with torch.no_grad():
        mean = module.loss(torch.cat(validation))
    assert outcome.val_loss == pytest.approx(mean.item(), rel=1e-6)


def test_a_comparison_is_a_command_with_defaults_of_its_own(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(compare, "main", lambda *choices: calls.append(choices))
    gpt2.run(["compare"])
    expected = dataclasses.replace(
        gpt2.tiny(), name="gpt2-tiny-compare", batch_size=32, max_steps=250, weight_decay=0.0
    )
    everything = list(variants.ALL)
    assert calls == [(expected, gpt2.prepare, list(variants.FEW), compare.Options(), everything)]
    args = ["--preset=small", "--max-steps", "7", "--warmup-steps", "2", "--variants=all"]
    gpt2.run(["compare", *args, "--batch-sizes", "[8,16]", "--seeds=2", "--budget", "30"])
    chosen = compare.Options("all", seeds=2, batch_sizes=(8, 16), budget=30.0)
    assert calls[1][2:] == (everything, chosen, everything)
    assert calls[1][0] == dataclasses.replace(
        gpt2.small(), name="gpt2-small-compare", batch_size=128, max_steps=7, warmup_steps=2,
        weight_decay=0.0,
    )  # fmt: skip
    for args, text in ((["compare", "--help"], compare.ABOUT), (["--help"], "[compare]")):
        with pytest.raises(SystemExit):
            gpt2.run(args)
        assert text in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay: expected 0.0 in a comparison, got 0.1. A comp"),
        ({"optimizer": "sgd"}, "optimizer: expected 'adamw' in a comparison, got 'sgd'"),
        ({"rotation": "row"}, "rotation: expected None in a comparison"),
        ({"resume": "last"}, "resume: expected None in a comparison"),
    ],
)
def test_what_a_comparison_chooses_itself_is_refused(comparison, changes, message):
    with pytest.raises(settings.RecipeError, match=message):
        compare.main(dataclasses.replace(comparison, **changes), Prepare(end=0))


def rates(*losses):
    """Make runs at the rates 1, 2, ... that ended with these training losses."""
    return [
        sweep.Rate(
            rate, (single_run.Outcome(rate, loss, None if loss is None else loss + 0.5, 0.25),)
        )
        for rate, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("adam", "rotated", "expected"),
    [
        ((5.0, 4.5), (5.0, 4.75), "ahead of rotated Adam by 0.250 in training loss (4.500 against"),
        ((5.0, 4.75), (4.5, 5.0), "Adam is behind rotated Adam by 0.250"),
        ((5.0, None), (4.995, None), "Adam is level with rotated Adam, within 0.01"),
        ((None, None), (4.5, 5.0), "cannot be compared: one of them diverged at every rate."),
        (None, (4.5, 5.0), "Adam and rotated Adam were not both run."),
    ],
)
def test_the_comparison_says_whether_adam_is_ahead(adam, rotated, expected):
    results = {variants.ROTATED_ADAM: rates(*rotated)}
    if adam is not None:
        results[variants.ADAM] = rates(*adam)
    assert expected in tables.comparison_sentence(results, 250)


def test_the_comparison_fits_80_columns_and_tells_best_rates_at_an_end():
    from rich.console import Console

    def text(results):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(tables.comparison_table(results, 250))
        return console.export_text()

    results = {variant: rates(5.0, 4.75, None) for variant in variants.FEW}
    results[variants.FEW[2]] = rates(None, None, None)
    table = text(results)
    assert "*" not in table
    assert "…" not in table
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert "adam coordinate, rotated 2 4.750 5.250 1: 5.000 0.250" in lines
    assert "3: diverged" in lines
    assert "blockwise_adam tensor 1 diverged diverged 2: diverged 0.250" in lines
    table = text({variants.ADAM: rates(4.75, 5.0, 5.25)})
    assert "1* 4.750" in " ".join(table.split())
    assert "* an end of the rates tried" in table


def test_other_seeds_train_at_the_best_rate_and_tell_their_own_geometry(comparison, capsys):
    chosen = [variants.ADAM, variants.SGD, variants.ROTATED_SGD, variants.ROTATED_ADAM]
    chosen[3] = dataclasses.replace(chosen[3], factors=(1.0,))
    chosen[0] = dataclasses.replace(chosen[0], factors=(0.01, 1.0))
    chosen[1] = dataclasses.replace(chosen[1], factors=(100.0,))
    chosen[2] = dataclasses.replace(chosen[2], same_rate_as=chosen[1])
    options = compare.Options(seeds=1, points=2)
    (result,) = compare.main(comparison, gpt2.prepare, chosen, options)
    output = capsys.readouterr().out
    assert "adam, lr 0.01, seed 1: train" in output
    assert "sgd rotated global, lr 1, seed 0: train" in output
    assert "At the best rate, other seeds (1), and the geometry" in output
    assert "SGD with and without rotation, same seeds and rate: the training losses" in output
    folder = Path(comparison.runs_dir, comparison.name)
    record = json.loads((folder / "comparison.json").read_text())
    assert (folder / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert record["variants"][0]["lr"] == 0.01
    for outcomes in result.seeds.values():
        ((seed, steps),) = [(o.seed, [row["step"] for row in o.geometry]) for o in outcomes]
        assert (seed, steps) == (1, [1, 3])
    by_variant = {variant: outcomes[0] for variant, outcomes in result.seeds.items()}
    assert [set(outcome.geometry[1]["rotated"]) for outcome in by_variant.values()] == [
        {"global 1"}, set(), set(), set(),
    ]  # fmt: skip
    assert "(without SGD): 2 optimizers, too few." in output
    plain, turned = (by_variant[v].geometry[0] for v in chosen[1:3])
    # One step of SGD leads both to the same point, where a rotation keeps the largest eigenvalue
    # and not the (1,1)-norm.
    assert turned["lambda_max"] == pytest.approx(plain["lambda_max"], rel=0.02)
    assert turned["one_one_norm_per_param"] > 1.5 * plain["one_one_norm_per_param"]
    assert by_variant[chosen[2]].train_loss == pytest.approx(by_variant[chosen[1]].train_loss)


def test_the_geometry_of_a_run_is_that_of_its_weights_in_its_coordinates(comparison):
    own = importlib.import_module("own_geometry")
    chosen = {"optimizer": "adam", "rotation": "global", "max_steps": 1, "warmup_steps": 0}
    config = dataclasses.replace(comparison, **chosen)
    callback = own.OwnGeometry(1, ("tensor",), (), num_batches=2, num_probes=4)
    trainer, module, data = gpt2.prepare(
        config, [callback], logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    (row,) = callback.rows
    run, _ = sequences(config.data, config.cache_dir, micro_batch=2)
    coordinates = trainer.optimizers[0].coordinates(list(module.parameters()))
    report = measure_geometry(
        module, run[2:4], partitions=["tensor"], num_probes=4, reparameterization=coordinates
    )
    assert row["lambda_max"] == pytest.approx(report.lambda_max, rel=1e-5)
    assert row["one_one_norm_per_param"] == pytest.approx(report.one_one_norm_per_param, rel=1e-5)
    assert row["smoothness"]["tensor"] == pytest.approx(
        report.smoothness["tensor"].upper / report.num_params, rel=1e-5
    )


def test_adams_run_tells_the_geometry_of_rotated_adam_at_the_same_point(comparison):
    own = importlib.import_module("own_geometry")
    rows = {}
    for rotation, others in ((None, (("global", 0.5),)), ("global", ())):
        # No step is taken, so both see the initial weights.
        config = dataclasses.replace(
            comparison, optimizer="adam", max_steps=1, warmup_steps=0, lr=1e-12, rotation=rotation,
            rotation_strength=0.5 if rotation else 1.0,
        )  # fmt: skip
        callback = own.OwnGeometry(1, (), others, num_batches=2, num_probes=16)
        trainer, module, data = gpt2.prepare(
            config, [callback], logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, data)
        (rows[rotation],) = callback.rows
    there = rows[None]["rotated"]["global 0.5"]
    # Other probes: a relative error of 8 % each.
    assert there == pytest.approx(rows["global"]["one_one_norm_per_param"], rel=0.25)
    assert there > 1.5 * rows[None]["one_one_norm_per_param"]


def test_the_best_rate_is_that_of_the_least_mean_over_the_seeds_of_the_sweep(
    comparison, monkeypatch
):
    losses = {(0.1, 3): 1.0, (0.1, 4): 4.0, (0.2, 3): 2.0, (0.2, 4): 2.5, (0.4, 3): 0.5}
    made = []

    def ended(self, these, data_id):
        made.append([(run.config.optimizer, run.config.lr, run.config.seed) for run in these])
        found = [losses.get((run.config.lr, run.config.seed)) for run in these]
        return [
            single_run.Outcome(run.config.lr, x, x, 0.1)
            for run, x in zip(these, found, strict=True)
        ]

    monkeypatch.setattr(runs.Runs, "finish", ended)
    config = dataclasses.replace(comparison, seed=3, lr=0.1)
    adam = dataclasses.replace(variants.ADAM, factors=(1, 2, 4))
    sgd = dataclasses.replace(variants.SGD, same_rate_as=adam)
    options = compare.Options(sweep_seeds=2)
    (result,) = compare.main(config, gpt2.prepare, [sgd, adam], options)
    assert [rate.train_loss for rate in result.sweep[adam]] == [2.5, 2.25, None]
    assert sweep.best(result.sweep[adam]).lr == 0.2
    assert made == [
        [("adam", lr, seed) for lr in (0.1, 0.2, 0.4) for seed in (3, 4)],
        [("sgd", 0.2, 3), ("sgd", 0.2, 4)],
    ]
    pair = {variants.ADAM: result.sweep[adam], variants.ROTATED_ADAM: result.sweep[adam]}
    assert "of the rates tried, mean of 2 seeds)" in tables.comparison_sentence(pair, 3)


def test_rates_are_added_beyond_an_end_until_it_is_none_or_enough(comparison, monkeypatch):
    def ended(self, made, data_id):
        return [outcome_at(run.config.lr) for run in made]

    def outcome_at(lr):  # best at 1
        loss = None if lr > 3 else abs(math.log10(lr))
        return single_run.Outcome(lr, loss, loss, 0.1)

    monkeypatch.setattr(runs.Runs, "finish", ended)
    for factors, widen, expected in (
        ((15.0, 30.0, 60.0), 5, [0.15, 0.3, 0.6, 1.2, 2.4]),
        ((1000.0, 2000.0), 1, [5, 10, 20]),
        ((1000.0, 2000.0), 9, [0.625, 1.25, 2.5, 5, 10, 20]),
        ((10.0, 100.0), 0, [0.1, 1]),
    ):
        variant = dataclasses.replace(variants.SGD, factors=factors)
        options = compare.Options(widen=widen)
        (result,) = compare.main(comparison, gpt2.prepare, [variant], options)
        rates = [outcome.lr for outcome in result.sweep[variant]]
        assert rates == pytest.approx(expected), factors


def test_a_budget_ends_between_runs_and_the_next_call_goes_on(comparison, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    first, second = Prepare(), Prepare()

    def prepare(config, callbacks, **options):
        now[0] += 50
        return first(config, callbacks, **options)

    with pytest.raises(
        settings.RecipeError, match="budget: expected 4 runs within 1 minutes, got 2"
    ):
        compare.main(comparison, prepare, PAIR, compare.Options(budget=1.0))
    compare.main(comparison, second, PAIR)
    assert (len(first.rates), len(second.rates)) == (2, 2)


@pytest.mark.slow
def test_two_processes_compare_as_one(comparison, tmp_path):
    pair = [
        dataclasses.replace(v, factors=(0.5, 1.0)) for v in (variants.ADAM, variants.ROTATED_ADAM)
    ]
    options = compare.Options(seeds=1, widen=1)
    (alone,) = compare.main(comparison, gpt2.prepare, pair, options)

    def on_rank(rank):
        os.environ.update(environment(rank))
        together = dataclasses.replace(
            comparison, name="together", devices=2, micro_batch=1, strategy="ddp"
        )
        (result,) = compare.main(together, gpt2.prepare, pair, options)
        swept = [[(o.lr, o.train_loss) for o in rates] for rates in result.sweep.values()]
        ends = [outcomes[0].geometry[-1] for outcomes in result.seeds.values()]
        return swept, [(end["lambda_max"], end["smoothness"], end["rotated"]) for end in ends]

    first, second = in_two_processes(on_rank, tmp_path)
    assert first == second
    for found, rates in zip(first[0], alone.sweep.values(), strict=True):
        assert [lr for lr, _ in found] == [rate.lr for rate in rates]
        expected = [rate.train_loss for rate in rates]
        assert [loss for _, loss in found] == pytest.approx(expected, rel=1e-4)
    for (lambda_max, smoothness, rotated), outcomes in zip(
        first[1], alone.seeds.values(), strict=True
    ):
        end = outcomes[0].geometry[-1]
        assert lambda_max == pytest.approx(end["lambda_max"], rel=0.02)
        assert smoothness == pytest.approx(end["smoothness"], rel=0.02)
        assert rotated == pytest.approx(end["rotated"], rel=0.02)
    assert set(first[1][0][2]) == {"global 1"}


@pytest.mark.slow
def test_jobs_end_with_the_program_that_started_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {str(RECIPES)!r})
import runs

def note():
    open({str(tmp_path / "pid")!r}, "w").write(str(runs.os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, runs._start_job, (1,)) as pool:
        pool.submit(note).result()
""")
    parent = subprocess.Popen([sys.executable, program])
    deadline = time.monotonic() + 120
    while not ((tmp_path / "pid").is_file() and (pid := (tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    # The state is the first letter after the name; Z waits for the one that adopted it.
    stat = Path(f"/proc/{pid}/stat")
    while stat.is_file() and stat.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_two_jobs_find_what_one_finds(comparison):
    pair = [dataclasses.replace(variant, factors=(1.0,)) for variant in PAIR]
    alone = compare.main(comparison, gpt2.prepare, pair)
    options = compare.Options(jobs=2)
    config = dataclasses.replace(comparison, name="together")
    together = compare.main(config, gpt2.prepare, pair, options)

    def losses(results):
        return [o.train_loss for row in results[0].sweep.values() for o in row]

    assert losses(together) == pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"seeds": -1}, {}, "seeds: expected at least 0, got -1"),
        ({"jobs": 0}, {}, "jobs: expected at least 1, got 0"),
        ({"points": 0}, {}, "points: expected at least 1"),
        ({"widen": -2}, {}, "widen: expected at least 0"),
        ({"sweep_seeds": 0}, {}, "sweep_seeds: expected at least 1"),
        ({"budget": 0.0}, {}, "budget: expected minutes above 0"),
        ({"jobs": 2}, {"devices": 2}, "jobs: expected 1, and no budget, on several devices"),
        ({"budget": 9.0}, {"devices": 2}, "jobs: expected 1, and no budget, on several devices"),
        ({"seeds": 1}, {"strategy": "fsdp2"}, "seeds: expected 0 beside fsdp2"),
    ],
)
def test_options_that_no_comparison_can_have_are_refused(comparison, options, changes, message):
    config = dataclasses.replace(comparison, **changes)
    with pytest.raises(settings.RecipeError, match=message):
        compare.main(config, Prepare(end=0), PAIR, compare.Options(**options))


THERE = {"coordinate": 1.0, "row": 2.0, "head": 2.5, "tensor": 3.0, "global": 10.0}  # H(Phi) / d


def record_of(*entries):
    """Make a record of (variant, rate, losses by seed, H(Phi) by seed, recommended)."""
    return {
        "options": {"seeds": 2, "jobs": 1},
        "variants": [
            {
                "optimizer": v.optimizer, "geometry": v.geometry, "partition": v.partition,
                "rotation": v.rotation and "{} {:g}".format(*v.rotation), "lr": lr,
                "seeds": [
                    {
                        "train_loss": loss, "val_loss": loss,
                        "geometry": [] if loss is None else [{
                            "one_one_norm_per_param": h, "lambda_max": 2 * h,
                            "smoothness": {**THERE, v.partition: h},
                            "rotated": {"global 1": 9.0, "tensor 1": 8.0, "global 0.5": 7.0,
                                        "global 0.25": 6.0},
                            "recommended": recommended,
                        }],
                    }
                    for loss, h in zip(losses, smoothness, strict=True)
                ],
            }
            for v, lr, losses, smoothness, recommended in entries
        ],
    }  # fmt: skip


def test_the_sentences_of_other_seeds_say_what_came_out():
    record = record_of(
        (variants.ADAM, 0.1, (1.0, 1.25), (1.0, 2.0), "tensor"),
        (variants.ROTATED_ADAM, 0.1, (2.0, 2.5), (5.0, 6.0), "coordinate"),
        (variants.FEW[2], 0.1, (1.5, 1.75), (3.0, 4.0), "coordinate"),
        (variants.SGD, 1.0, (3.0, 3.5), (0.5, 0.75), "coordinate"),
        (variants.ROTATED_SGD, 1.0, (3.0, 3.50001), (0.5, 0.75), "coordinate"),
    )
    text = "\n".join(tables.seeds_sentences(record))
    assert "Adam is ahead of rotated Adam by 1.125 in training loss, mean of 2 seeds (1 to" in text
    assert "over seeds: 0.177 and 0.354." in text
    assert "own coordinates: 1.5 for Adam (1 to 2), 5.5 for rotated Adam (5 to 6)." in text
    assert "the training losses differ by 1e-05 at most." in text
    own = "Spearman's rho of H(Phi) at the end of each run and the training loss"
    assert f"{own} (without SGD, 3 optimizers, 6 runs): 1.00, 95 % interval" in text
    there = "Spearman's rho of H(Phi) at the end of Adam's run and the training loss"
    assert f"{there} (without SGD, 3 optimizers, 6 runs): 0.97, 95 % interval" in text
    # Ranks of H 1 2 3.5 3.5 5.5 5.5 7.5 7.5, as SGD's is 10, and of the losses 1 to 8, of which SGD
    # has the last two: 40.5 / sqrt(40.5 * 42).
    assert f"{there} (all, 4 optimizers, 8 runs): 0.98, 95 % interval" in text
    assert f"{own} (all, 4 optimizers, 8 runs): -0.14, 95 % interval" in text
    assert "tensor on 2 of 2, where training ends +0.500 above Adam." in text
    assert "Blockwise Adam against Adam: tensor +0.500." in text


def test_the_sentences_tell_divergence_and_missing_variants():
    record = record_of(
        (variants.ADAM, 0.1, (1.0, None), (1.0, 2.0), "coordinate"),
        (variants.ROTATED_ADAM, 0.1, (2.0, 2.5), (5.0, 6.0), "coordinate"),
        (variants.SGD, 1.0, (3.0, 3.5), (0.5, 0.75), "coordinate"),
        (variants.ROTATED_SGD, 1.0, (None, 3.5), (0.5, 0.75), "coordinate"),
    )
    text = "\n".join(tables.seeds_sentences(record))
    assert "cannot be compared: runs of one of them diverged" in text
    assert "SGD and rotated SGD cannot be compared: runs of one of them diverged." in text
    assert "at the end of Adam's run and" not in text
    assert tables.seeds_rows(record)[0][2] == "1/2 diverged"
    assert "(without SGD): 1 optimizers, too few." in text
    assert tables.seeds_sentences(record_of((variants.SGD, 1.0, (1.0, 2.0), (1.0, 2.0), "x")))


def test_the_figure_leaves_out_what_diverged(tmp_path, monkeypatch):
    figures = importlib.import_module("figures")
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    entries = [
        (variants.ADAM, 0.1, (1.0, 1.25), (1.0, 2.0), "tensor"),
        (variants.ROTATED_ADAM, 0.1, (None, 2.5), (5.0, 6.0), "coordinate"),
    ]
    figures.draw_comparison(record_of(*entries), tmp_path)
    entries[0] = (variants.ADAM, 0.1, (1.0, None), (1.0, 2.0), "tensor")
    figures.draw_comparison(record_of(*entries), tmp_path)
    points = [
        [[list(zip(*line.get_data(), strict=True)) for line in axes.lines] for axes in figure.axes]
        for figure in drawn
    ]
    assert points[0] == [
        [[(1.0, 1.0), (2.0, 1.25)], [(6.0, 2.5)]],
        [[(2.0, 1.0), (4.0, 1.25)], [(12.0, 2.5)]],
        [[(1.0, 1.0), (2.0, 1.25)], [(6.0, 2.5)]],
        [[(1.0, 1.0), (2.0, 1.25)], [(9.0, 2.5)]],  # at Adam's end, of the same seed
    ]
    assert points[1] == [
        [[(1.0, 1.0)], [(6.0, 2.5)]], [[(2.0, 1.0)], [(12.0, 2.5)]], [[(1.0, 1.0)], [(6.0, 2.5)]],
    ]  # fmt: skip


def test_rank_correlation_and_its_interval():
    ranks = importlib.import_module("rank_correlation")
    rising = [(1.0, 10.0), (2.0, 20.0), (3.0, 15.0), (4.0, 40.0)]
    assert ranks.spearman(rising) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert ranks.spearman([(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)]) == pytest.approx(math.sqrt(0.75))
    assert math.isnan(ranks.spearman([(1.0, 1.0), (1.0, 2.0)]))
    groups = [[(float(i), float(i))] for i in range(6)]
    assert ranks.spearman_interval(groups) == pytest.approx((1.0, 1.0))
    mixed = [[(float(i), float(j))] for i, j in enumerate((2, 0, 1, 4, 3, 5))]
    lower, upper = ranks.spearman_interval(mixed)
    assert -1 <= lower < ranks.spearman([pair for group in mixed for pair in group]) < upper <= 1
    assert all(map(math.isnan, ranks.spearman_interval([[(1.0, 1.0)]])))


def test_the_seeds_table_fits_80_columns():
    from rich.console import Console

    everything = [(v, 0.1, (1.0, 1.25), (1234.5, 0.012), "tensor") for v in variants.ALL]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.seeds_table(record_of(*everything)))
    text = console.export_text()
    assert "…" not in text
    assert "adam coordinate, rotated tensor 1.125 ±0.177 617" in " ".join(text.split())


def test_the_page_is_written_from_the_records(comparison, tmp_path, monkeypatch):
    paper = importlib.import_module("paper")
    options = compare.Options(seeds=1)
    chosen = [dataclasses.replace(variants.SGD, factors=(1.0,))]
    compare.main(comparison, gpt2.prepare, chosen, options)
    folder = tmp_path / "results"
    folder.mkdir()
    found = Path(comparison.runs_dir, comparison.name, "comparison.json")
    (folder / "gpt2.json").write_text(
        json.dumps({**json.loads(found.read_text()), "minutes": 1.25})
    )
    monkeypatch.setattr(paper, "FOLDER", folder)
    page = "\n".join(paper.page())
    assert f"    python recipes/{paper.GPT2.command}\n" in page
    assert "### Batches of 4, 3 steps" in page
    assert "| sgd | global, l2 | **0.01: " in page
    assert "The command took 1.2 minutes, runs kept from" in page
    assert f"torch {torch.__version__}" in page
    assert "![](results/gpt2.png)" in page
    assert "2 runs that did not diverge: " in page
    assert page.count("Not run.") == 2
    assert page.count("Not run: only `make paper ARGS=--long` does.") == 2
    assert "Not run: `make paper` found no CUDA device." in page


def test_the_commands_of_the_page_are_right(monkeypatch, capsys):
    import shlex

    paper = importlib.import_module("paper")
    resnet = importlib.import_module("resnet")
    for study in paper.STUDIES[1:]:
        calls = []
        monkeypatch.setattr(compare, "main", lambda *choices, calls=calls: calls.append(choices))
        recipe, *args = shlex.split(study.command)
        {"gpt2.py": gpt2, "resnet.py": resnet}[recipe].run(args)
        ((config, _, _, options, _),) = calls
        assert options.seeds >= 2
        names = [f"{config.name}-batch{size}" for size in options.batch_sizes] or [config.name]
        assert names == list(study.results.values())


@pytest.mark.slow
def test_the_program_says_in_one_line_what_is_wrong(tmp_path):
    command = [sys.executable, RECIPES / "gpt2.py", "--accelerator=cpu", "--data=nowhere.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: data: expected 'stdlib'")
