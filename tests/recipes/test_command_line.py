import dataclasses

import pytest
from support.recipes import RECIPES

import command_line
import gpt2
from settings import RecipeError


def parse(*args):
    return command_line.parse(gpt2.PRESETS, args, "Train.")[0]


def test_no_argument_means_tiny():
    assert parse() == gpt2.PRESETS["tiny"]() == gpt2.Config()


def test_flags_win_over_yaml_over_preset(tmp_path):
    file = tmp_path / "choices.yaml"
    file.write_text("preset: small\nlr: 0.5\nmax_steps: 7000\n")
    expected = dataclasses.replace(gpt2.PRESETS["small"](), lr=0.25, max_steps=7000)
    # a flag before the file wins, too
    assert parse("--lr", "0.25", "--config", str(file)) == expected
    assert parse(f"--config={file}", "--lr=0.25") == expected
    other = dataclasses.replace(gpt2.PRESETS["124m"](), lr=0.5, max_steps=7000)
    assert parse("--preset", "124m", "--config", str(file)) == other


def test_names_of_flags_may_have_dashes(tmp_path):
    expected = dataclasses.replace(
        gpt2.PRESETS["tiny"](),
        rotation="row",
        rotation_strength=0.5,
        swap_at=7,
        name="--a-b",
        data="c-d",
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
    assert "and memory in proportion. (type: int, default: 6)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--n_layer", "x"], "n_layer"),
        (["--n_embd", "66"], "error: n_embd: expected a multiple of n_head=4, got 66"),
        (["--preset", "huge"], "preset: expected one of tiny, 124m, small, got 'huge'. Choose"),
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


def test_every_preset_names_the_same_settings_and_remarks_on_each():
    for folder in (RECIPES / "presets").iterdir():
        settings = []
        for file in folder.iterdir():
            lines = [line for line in file.read_text().splitlines() if line and line[0] != "#"]
            names = [line.partition(":")[0] for line in lines]
            assert [name for name, line in zip(names, lines, strict=True) if " # " not in line] == [
                "name"
            ]
            settings.append(names)
        assert all(names == settings[0] for names in settings)


def test_a_file_beside_the_presets_is_one_and_a_wrong_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "_PRESETS", tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "mine.yaml").write_text("n_layer: 3\n")
    (tmp_path / "gpt2" / "wrong.yaml").write_text("n_lyer: 3\n")
    presets = command_line.find_presets("gpt2", gpt2.Config, default="mine")
    assert command_line.parse(presets, [], "Train.")[0] == gpt2.Config(n_layer=3)
    with pytest.raises(RecipeError, match=r"preset: expected settings of Config in .*wrong.yaml"):
        presets["wrong"]()


@pytest.mark.parametrize("content", ["n_lyer: 3", "[", "preset: huge"])
def test_a_wrong_file_ends_with_a_reason(content, tmp_path, capsys):
    file = tmp_path / "choices.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit):
        parse("--config", str(file))
    assert "error: " in capsys.readouterr().err
