import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from shlex import quote

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from support.ranks import assert_close, environment, in_two_processes, weights
from support.recipes import RECIPES
from support.small_gpt2 import logged

import gpt2
from data import token_data
from settings import RecipeError


def test_two_steps_run_and_everything_is_reported(config, capsys):
    trainer = gpt2.main(config)
    output = capsys.readouterr().out
    assert trainer.global_step == 2
    beside_the_bar = trainer.progress_bar_callback.get_metrics(trainer, trainer.lightning_module)
    assert set(beside_the_bar) == {"train_loss", "val_loss"}
    assert set(logged(trainer, "train_loss")) == {0, 1}
    val_loss = logged(trainer, "val_loss")
    assert set(val_loss) == {1}
    assert logged(trainer, "val_perplexity")[1] == pytest.approx(np.exp(val_loss[1]), rel=1e-5)
    assert set(logged(trainer, "geometry/density")) == {0, 1}
    assert set(logged(trainer, "geometry/one_one_norm_per_param")) == {1}
    assert "Geometry of the loss" in output
    assert "Trained with adamw. The geometry is measured in the coordinates of" in output
    assert "At step 2: " in output
    assert "This is no forecast of how training ends." in " ".join(output.split())
    assert f"tensorboard --logdir {quote(config.runs_dir)}" in output
    folder = Path(trainer.log_dir) / "checkpoints"
    assert {file.name for file in folder.iterdir()} == {"last.ckpt", "best.ckpt"}
    assert f"Checkpoint: {folder / 'last.ckpt'}" in output
    last = quote(str(folder / "last.ckpt"))
    command = f"measure {last} --model gpt2.GPT2 --data data.token_data.TokenData"
    assert command in " ".join(output.replace("\\\n", " ").split())


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
    with pytest.raises(RecipeError, match=message):
        gpt2.main(dataclasses.replace(config, data=str(folder)))


def test_missing_text_is_refused(config, tmp_path):
    with pytest.raises(RecipeError, match=r"expected 'stdlib'.* got .*nowhere.* --data"):
        gpt2.main(dataclasses.replace(config, data=str(tmp_path / "nowhere" / "*.txt")))


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 32])
def test_124m_takes_half_a_million_tokens_a_step(devices):
    config = dataclasses.replace(gpt2.PRESETS["124m"](), devices=devices)
    assert config.micro_batch * devices * config.accumulate * config.sequence_length == 2**19


def test_sizes_of_the_presets():
    sizes = {}
    for name, preset in gpt2.PRESETS.items():
        with torch.device("meta"):
            module = gpt2.GPT2(preset())
        sizes[name] = sum(p.numel() for p in module.parameters())
    assert sizes == {"tiny": 370_432, "small": 13_891_584, "124m": 124_475_904}


def test_a_checkpoint_gives_module_and_data_back(config):
    trainer = gpt2.main(config)
    path = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
    module = gpt2.GPT2.load_from_checkpoint(path)
    assert module.config == config
    torch.testing.assert_close(module.state_dict(), trainer.lightning_module.state_dict())
    data = token_data.TokenData.load_from_checkpoint(path)
    assert vars(data.hparams) == vars(trainer.datamodule.hparams)
    assert (data.folder, data.batch_size) == (trainer.datamodule.folder, config.batch_size)


@pytest.mark.slow
def test_the_program_says_in_one_line_what_is_wrong(tmp_path):
    command = [sys.executable, RECIPES / "gpt2.py", "--accelerator=cpu", "--data=nowhere.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: data: expected 'stdlib'")
