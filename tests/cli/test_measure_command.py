"""`lightning-linf measure`: what is measured, what is printed, and wrong arguments."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse", reason="the command needs jsonargparse: lightning-linf[cli]")

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from support.users_project import (
    CHEAP,
    CLASSES,
    QUIET,
    USUAL,
    WARNINGS,
    numbers,
    refusal,
    run,
    users_batches,
)

from lightning_linf import measure_geometry, probe
from lightning_linf.cli import main
from lightning_linf.functional import offload
from lightning_linf.probe import ProbeError

pytestmark = [pytest.mark.filterwarnings(line) for line in WARNINGS]


@pytest.mark.parametrize(
    ("flags", "split", "num_batches", "num_noise_batches", "options"),
    [
        ([], "train", 1, 8, {}),
        (["--num_batches=3", "--num_noise_batches=5", "--seed=4"], "train", 3, 5, {"seed": 4}),
        (["--num_noise_batches", "0", "--mode=train"], "train", 1, 0, {"mode": "train"}),
        (["--split=val", "--num_noise_batches=2", "--num_batches=2"], "val", 2, 2, {}),
        (["--num_noise_batches=0", "--max_hvps=45"], "train", 1, 0, {"max_hvps": 45}),
        (["--num_noise_batches=0", "--partitions", "row", "module"], "train", 1, 0,
         {"partitions": ["row", "module"]}),
        (["--num_noise_batches=0", "--partitions", "row", "--output_dims", '{"layers.0": 1}'],
         "train", 1, 0, {"partitions": ["row"], "output_dims": {"layers.0": 1}}),
    ],
)  # fmt: skip
def test_report_is_that_of_measure_geometry_on_the_same_batches(
    project, capsys, flags, split, num_batches, num_noise_batches, options
):
    report, _, _ = run(capsys, *USUAL, *flags)
    module = project.Net.load_from_checkpoint("net.ckpt")
    assert module.hparams == {"width": 5, "scale": 0.5}
    batches = users_batches(project, split)
    expected = measure_geometry(
        module,
        batches[:num_batches],
        noise_batches=batches[:num_noise_batches] or None,
        **{"num_probes": 4, "partitions": ["tensor"]} | options,
    )
    assert numbers(report) == numbers(expected)
    assert report.settings == expected.settings | {
        "checkpoint": "net.ckpt", "global_step": 3, "split": split,
    }  # fmt: skip


def test_partitions_and_their_arguments_are_passed_on(capsys, monkeypatch):
    seen = []

    def stop(*args, **options):
        seen.append([options[name] for name in ("partitions", "output_dims", "fused_qkv")])
        raise ProbeError("stopped")

    monkeypatch.setattr(probe, "measure_geometry", stop)
    flags = ["--partitions", "head", "--fused_qkv", "head_qkv"]
    assert "stopped" in refusal(capsys, *USUAL, *flags)
    assert "stopped" in refusal(capsys, "net.ckpt", *CLASSES)
    assert seen == [[["head"], None, "head_qkv"], [None, None, None]]


def test_what_is_printed_is_the_report_and_where_it_was_saved(capsys):
    report, out, err = run(capsys, *USUAL)
    assert [line.rstrip() for line in out.splitlines()] == [
        *str(report).splitlines(),
        "Report: run.json",
    ]
    assert err == ""


def test_a_terminal_shows_progress(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich see a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert "Hessian-vector products" in run(capsys, *USUAL)[2]


def test_a_given_argument_replaces_the_saved_one_and_the_others_stay(capsys, tmp_path):
    saved, _, _ = run(capsys, *USUAL)  # with scale 0.5
    file = tmp_path / "choices.yaml"
    file.write_text(
        "seed: 7\nnum_probes: 4\ntrainer: {max_steps: 3}\nmodel: {class_path: users_net.Net, "
        "init_args: {scale: 1.0}}\ndata: {class_path: users_net.Data, init_args: {seed: 3}}\n"
    )
    start = ["net.ckpt", "--device=cpu", "--partitions", "tensor"]
    other, _, _ = run(capsys, *start, "--config", str(file))
    assert other.settings["seed"] == 7
    assert other.loss != pytest.approx(2 * saved.loss)  # other data
    # Flags win, before the file and after it.
    flags = ["--data.seed", "2", f"--config={file}", "--seed=0", "--model.scale=2.0"]
    scaled, _, _ = run(capsys, *start, *flags, "--matmul_precision=high")
    assert (scaled.settings["seed"], scaled.settings["matmul_precision"]) == (0, "high")
    assert scaled.loss == pytest.approx(4 * saved.loss, rel=1e-6)  # float32


def test_without_data_the_module_is_asked(project, capsys):
    flags = ["withdata.ckpt", "--model", "users_net.WithData", *CHEAP, "--num_noise_batches=2"]
    report, _, _ = run(capsys, *flags)
    module = project.WithData.load_from_checkpoint("withdata.ckpt")
    batches = [tuple(batch) for batch in project.loader(3, 2)]
    expected = measure_geometry(
        module, batches[:1], noise_batches=batches, num_probes=4, partitions=["tensor"]
    )
    assert numbers(report) == numbers(expected)


def test_arguments_that_were_not_saved_can_be_given(capsys):
    flags = ["--model", "users_net.Plain", "--data", "users_net.Data", *CHEAP]
    message = refusal(capsys, "plain.ckpt", *flags)
    assert "got none in the checkpoint for width. Give them as --model.width VALUE" in message
    assert "self.save_hyperparameters() in Plain.__init__" in message
    plain, _, _ = run(capsys, "plain.ckpt", *flags, "--model.width=5", "--model.scale=0.5")
    net, _, _ = run(capsys, *USUAL)
    assert numbers(plain) == numbers(net)  # trained alike


def test_setup_does_not_touch_the_weights(capsys):
    flags = ["net.ckpt", "--model=users_net.Resetting", "--data=users_net.Data", *CHEAP]
    assert numbers(run(capsys, *flags)[0]) == numbers(run(capsys, *USUAL)[0])


@pytest.mark.parametrize("subclass_mode", [False, True])
def test_a_checkpoint_of_lightning_cli_is_measured(project, capsys, tmp_path, subclass_mode):
    if subclass_mode:
        arguments = {
            "model": {"class_path": "users_net.Net", "init_args": {"width": 5, "scale": 0.5}},
            "data": {"class_path": "users_net.Data", "init_args": {"num_batches": 9, "seed": 2}},
        }
    else:
        arguments = {
            "model": {"width": 5, "scale": 0.5},
            "data": {"num_batches": 9, "seed": 2},
        }
    arguments |= {"trainer": QUIET | {"enable_checkpointing": False}, "seed_everything": 0}
    cli = LightningCLI(
        LightningModule if subclass_mode else project.Net,
        None if subclass_mode else project.Data,
        run=False,
        args=arguments,
        save_config_callback=None,
        subclass_mode_model=subclass_mode,
        subclass_mode_data=subclass_mode,
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    path = tmp_path / "cli.ckpt"
    cli.trainer.save_checkpoint(path)
    assert "_instantiator" in torch.load(path, weights_only=True)["hyper_parameters"]

    report, _, _ = run(capsys, str(path), *CLASSES, *CHEAP)
    module = project.Net(width=5, scale=0.5)
    module.load_state_dict(cli.model.state_dict())
    batches = users_batches(project)
    options = {"num_probes": 4, "partitions": ["tensor"], "noise_batches": batches}
    assert numbers(report) == numbers(measure_geometry(module, batches[:1], **options))
    scaled, _, _ = run(capsys, str(path), *CLASSES, *CHEAP, "--model.scale", "1.0")
    assert scaled.loss == pytest.approx(2 * report.loss, rel=1e-6)  # float32
    assert "Net" in refusal(capsys, str(path), *CLASSES, *CHEAP, "--model.width", "x")


def test_an_unmeasured_point_leaves_the_old_report(capsys, tmp_path):
    output = tmp_path / "report.json"
    output.write_text("old")
    for model, status in (("Interrupted", 130), ("Manual", 2)):
        flags = ["--model", f"users_net.{model}", "--data", "users_net.Data", *CHEAP]
        assert main(["measure", "net.ckpt", *flags, "--output", str(output)]) == status
        assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
        assert output.read_text() == "old"
    assert capsys.readouterr().err.splitlines()[0] == "interrupted"


def test_mistakes_of_the_users_code_keep_their_traceback(tmp_path):
    flags = ["net.ckpt", "--data", "users_net.Data", *CHEAP]
    with pytest.raises(ValueError, match="a mistake of the user"):
        main(["measure", *flags, "--model", "users_net.Wrong"])
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        main(["measure", *flags, "--model", "users_broken.Net"])


REFUSALS = {
    "no model": (["net.ckpt"], "arguments are required: model (see --help)"),
    "no checkpoint": (CLASSES, "arguments are required: checkpoint"),
    "checkpoint nowhere": (["nowhere.ckpt", *CLASSES], "got nothing at 'nowhere.ckpt'"),
    "checkpoint a folder": ([".", *CLASSES], "got a folder at '.'. Name a file in it"),
    "checkpoint is text": (["users_net.py", *CLASSES], "'users_net.py', which is something else"),
    "no weights": (["other.ckpt", *CLASSES], "'other.ckpt', which has no `state_dict`"),
    "objects": (["objects.ckpt", *CLASSES], "got users_net.Other in 'objects.ckpt'. Reading such"),
    "no dot": (["net.ckpt", "--model", "Net"], "--model to be the path of a LightningModule"),
    "no module": (["net.ckpt", "--model", "nowhere.Net"], "there is no module 'nowhere' in this"),
    "no submodule": (["net.ckpt", "--model", "users_net.sub.Net"], "no module 'users_net.sub'"),
    "no class": (["net.ckpt", "--model", "users_net.Nett"], "'users_net.Nett', which names no"),
    "not a module": (["net.ckpt", "--model", "users_net.Data"], "does not derive from lightning."),
    "not data": ([*USUAL, "--data", "users_net.Net"], "--data to be the path of a LightningData"),
    "unknown option": ([*USUAL, "--num_prob", "3"], "unrecognized arguments: --num_prob"),
    "unknown argument": ([*USUAL, "--model.depth", "3"], "--model Net: unrecognized arguments: "),
    "wrong type": ([*USUAL, "--data.seed", "x"], "--data Data: Parser key \"data.seed\""),
    "no value": ([*USUAL, "--model.width", "--seed=1"], "a value after --model.width, got none"),
    "last no value": ([*USUAL, "--model.width"], "expected a value after --model.width, got none"),
    "weights of another": ([*USUAL, "--model.width=6"], "net.ckpt' to fit Net, got: size mismatch"),
    "config nowhere": ([*USUAL, "--config", "no.yaml"], "--config to be a YAML file: [Errno 2]"),
    "config no YAML": ([*USUAL, "--config", "bad.yaml"], "--config to be a YAML file: while"),
    "config a list": ([*USUAL, "--config", "list.yaml"], "hold a mapping, got list in 'list.yaml'"),
    "config's model": ([*USUAL, "--config", "model.yaml"], "expected `model` in --config to be a"),
    "config's option": ([*USUAL, "--config", "option.yaml"], "Option 'num_prob' is not accepted"),
    "split": ([*USUAL, "--split", "test"], "split"),
    "partition": ([*USUAL, "--partitions", "rows"], "partitions"),
    "no heads": ([*USUAL, "--partitions", "head"], "expected attention with trainable parameters"),
    "fused_qkv": ([*USUAL, "--fused_qkv", "kqv"], "fused_qkv"),
    "output_dims": ([*USUAL, "--output_dims", "{weight: one}"], "output_dims"),
    "num_probes": ([*USUAL, "--num_probes", "3"], "expected `num_probes` >= 4, got 3"),
    "max_hvps": ([*USUAL, "--max_hvps", "5"], "expected `max_hvps` >= 41"),
    "num_batches": ([*USUAL, "--num_batches", "0"], "--num_batches at least 1, got 0"),
    "one for noise": ([*USUAL, "--num_noise_batches=1"], "--num_noise_batches 0 or at least 2"),
    "less for noise": ([*USUAL, "--num_noise_batches=-3"], "--num_noise_batches 0 or at least 2"),
    "device": ([*USUAL, "--device", "gpu0"], "--device to be auto, cpu, cuda, cuda:1 (say) or mps"),
    "no such device": ([*USUAL, "--device", "cuda:99"], "--device cuda:99: "),
    "output a folder": ([*USUAL, "--output", "."], "--output to be a file, got the folder"),
    "output nowhere": ([*USUAL, "--output", "no/r.json"], "--output in a folder that exists, got"),
    "too few batches": ([*USUAL, "--num_batches=10"], "10 batches in Data.train_dataloader "
                        "(the larger of --num_batches and --num_noise_batches), got 9"),
    "few in val": ([*USUAL, "--split=val"], "expected 8 batches in Data.val_dataloader"),
    "no data": (["net.ckpt", "--model=users_net.Net", *CHEAP], "to have a train_dataloader, got "
                "none. Give a LightningDataModule as --data"),
    "not measurable": (["net.ckpt", "--model=users_net.Manual", "--data=users_net.Data", *CHEAP],
                       "expected automatic optimization, but Manual.training_step steps its"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(folder, project, capsys, args, message):
    torch.save({"epoch": 1}, "other.ckpt")
    torch.save({"state_dict": {}, "it": project.Other()}, "objects.ckpt")
    Path("bad.yaml").write_text("[")
    Path("list.yaml").write_text("- 1\n")
    Path("model.yaml").write_text("model: [1]\n")
    Path("option.yaml").write_text("num_prob: 1\n")
    assert message in refusal(capsys, *args)


def test_offloaded_vectors_wait_in_memory_of_the_cpu(capsys, monkeypatch):
    plain, _, _ = run(capsys, *USUAL)
    sizes, real = [], offload._host_memory
    monkeypatch.setattr(offload, "_host_memory", lambda like: sizes.append(len(like)) or real(like))
    offloaded, _, _ = run(capsys, *USUAL, "--offload=cpu")
    assert plain.num_params in sizes
    assert offloaded.smoothness == plain.smoothness
