"""The command as a program: help, what it needs, and from end to end."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("jsonargparse", reason="the command needs jsonargparse: lightning-linf[cli]")


from support.users_project import USUAL, WARNINGS

from lightning_linf import GeometryReport
from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.cli import main
from lightning_linf.partition_names import FusedQKV, PartitionName
from lightning_linf.probe.brackets import OPERATOR_HVPS

pytestmark = [pytest.mark.filterwarnings(line) for line in WARNINGS]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_help_names_every_partition_and_order(capsys):
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ", ".join(get_args(PartitionName)) in text
    assert all(order in text for order in get_args(FusedQKV))


def test_budget_that_is_told_is_the_budget_that_is_used(capsys):
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    each = OPERATOR_HVPS + 1  # and one along the gradient
    told = f"num_probes + {each} for each partition, {each} for global."
    assert told in " ".join(capsys.readouterr().out.split())
    told = f'At most ``num_probes`` + {each} products for each partition, {each} for "global".'
    assert told in " ".join(LinfSmoothnessMonitor.__doc__.split())


def test_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["measure", "--help"]) == 2
    message = "error: lightning-linf measure needs: pip install 'lightning-linf[cli]'\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("args", "status", "stream", "message"),
    [
        (["--help"], 0, "out", "measure the geometry at a Lightning checkpoint"),
        (["report", "--help"], 0, "out", "Write the geometry of runs as one HTML file"),
        (["measure", "--help"], 0, "out", "--num_noise_batches NUM_NOISE_BATCHES Batches for the"),
        ([], 2, "err", "the following arguments are required: COMMAND"),
        (["mesure"], 2, "err", "invalid choice: 'mesure'"),
    ],
)
def test_help_and_commands(capsys, args, status, stream, message):
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == status
    assert message in " ".join(getattr(capsys.readouterr(), stream).split())


def test_help_is_shown_without_importing_torch():
    code = """
        import sys
        from lightning_linf.cli import main
        try:
            main(["measure", "--help"])
        except SystemExit:
            heavy = {"torch", "numpy", "lightning"} & set(sys.modules)
            assert not heavy, heavy
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: lightning-linf measure CHECKPOINT" in done.stdout


@pytest.mark.slow
def test_the_program_from_end_to_end(folder, tmp_path):
    program = Path(sys.executable).with_name("lightning-linf")
    command = [program, "measure", *USUAL, "--output", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Measured in the coordinates of the parameters: d = 32," in done.stdout
    assert GeometryReport.load(tmp_path / "report.json").num_params == 32
    done = subprocess.run(
        [program, "measure", "net.ckpt", "--model", "users_net.Nett"],
        cwd=folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: measure: expected --model to be the path of a Lightning")


@pytest.mark.slow
@pytest.mark.skipif(not RECIPES.is_dir(), reason="recipes/ is not in the wheel")
def test_the_checkpoint_of_the_recipe_is_measured_by_the_command_it_prints(tmp_path):
    pytest.importorskip("transformers", reason="the recipes need it: lightning-linf[recipes]")
    (tmp_path / "texts").mkdir()
    for number in range(10):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} plus one is more. " * 40)
    choices = "max_steps=4 warmup_steps=1 sequence_length=16 n_layer=1 n_head=2 n_embd=8 "
    choices += "vocab_size=300 batch_size=2 micro_batch=2 val_every=4 smoothness_every=4 "
    choices += "num_probes=4 accelerator=cpu data=texts"
    flags = [f"--{choice}" for choice in choices.split()]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run([sys.executable, RECIPES / "gpt2.py", *flags], **options)
    assert done.returncode == 0, done.stderr
    start, end = f"  PYTHONPATH={RECIPES} ", "See the curves"
    command = done.stdout[done.stdout.index(start) : done.stdout.index(end)].strip()
    flags = "--num_probes=4 --num_noise_batches=2 --device=cpu --partitions head --output r.json"
    done = subprocess.run(f"{command} {flags}", shell=True, **options)
    assert (done.returncode, done.stderr) == (0, "")
    settings = GeometryReport.load(tmp_path / "r.json").settings
    assert settings["checkpoint"] == "runs/gpt2-tiny/version_0/checkpoints/last.ckpt"
    assert settings["global_step"] == 4
