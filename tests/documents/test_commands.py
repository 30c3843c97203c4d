"""Every command in README and docs can be given: it exists, and takes the arguments."""

import pytest
from support.commands import UnknownCommand, check, is_quick
from support.documents import PAGES, fences, name_of


def commands():
    """One parameter for each command of each page, slow where a script has to be imported."""
    for page in PAGES:
        for first, block in fences(page, "sh"):
            for number, command in enumerate(block.splitlines(), first):
                if command.strip() and not command.startswith("#"):
                    marks = () if is_quick(command) else pytest.mark.slow
                    yield pytest.param(command, id=f"{name_of(page)}:{number}", marks=marks)


@pytest.mark.parametrize("command", [*commands()])
def test_command_of_a_page_can_be_given(command, monkeypatch):
    for package in ("jsonargparse", "sklearn", "transformers"):
        pytest.importorskip(package, reason="needs lightning-linf[dev]")
    check(command, monkeypatch)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ls", "expected one of"),
        ("make tset", "no target tset"),
        ("make test ARG=1", "no variable ARG"),
        ("pip install 'lightning-linf[nothing]'", "no extra nothing"),
        ("pip install lightning-linff", "in no extra"),
        ("pip install --editable '.[dev]' && make lnit", "no target lnit"),
        ("tensorboard --dir runs", "the following arguments are required: --logdir"),
        ("lightning-linf raport runs", "no command raport"),
        ("lightning-linf report runs", "required: -o/--output"),
        ("python recipes/gtp2.py", "there is no recipes/gtp2.py"),
        ("python docs/list_quantities.py --all", "takes no arguments"),
        pytest.param(
            "python benchmarks/rotation.py --steps 1",
            "unrecognized arguments: --steps",
            marks=pytest.mark.slow,
        ),
        pytest.param("make gpt2 ARGS='--n_layers 2'", "n_layers", marks=pytest.mark.slow),
    ],
)
def test_wrong_command_is_found(command, message, monkeypatch):
    with pytest.raises(UnknownCommand, match=message):
        check(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "make test ARGS='tests/optim -k signum'",
        "pip install 'lightning-linf[tensorboard]'  # the tab",
        "tensorboard --logdir lightning_logs",
        "lightning-linf report lightning_logs -o report.html",
        "git clone https://example.org/x.git && cd x",
        "python train.py --any thing",
        pytest.param("OMP_NUM_THREADS=1 make gpt2 ARGS='--n_layer 2'", marks=pytest.mark.slow),
        pytest.param("python benchmarks/all.py --quick", marks=pytest.mark.slow),
        pytest.param(
            "python recipes/gpt2.py compare --variants all --widen 7 --jobs 2",
            marks=pytest.mark.slow,
        ),
        pytest.param("python recipes/predict.py --page", marks=pytest.mark.slow),
        pytest.param(
            "torchrun --nproc-per-node 2 recipes/gpt2.py --devices 2", marks=pytest.mark.slow
        ),
        pytest.param(
            "lightning-linf measure last.ckpt --model my.Module --model.depth 2 --num_batches 4",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_right_command_is_let_pass(command, monkeypatch):
    check(command, monkeypatch)
