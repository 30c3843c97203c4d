"""What W&B, MLflow and Comet hold of a training: settings, tables, pictures, the record file."""

import csv
import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.records import read
from support.wandb_offline import config_of, history_of, records

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from lightning_linf.callbacks._services import settings_of

TAGS = [f"geometry/{name}_per_tensor" for name in ("heterogeneity", "noise", "smoothness")]
PACKAGES = [name for name in ("wandb", "mlflow", "comet_ml") if find_spec(name) is not None]
# In a process of its own: the packages start threads and change how others log.
TRAINING = """
import sys
from pathlib import Path
folder, packages = Path(sys.argv[1]), sys.argv[2:]
loggers = []
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, WandbLogger
if "comet_ml" in packages:
    quiet = dict.fromkeys(["log_code", "log_graph", "log_git_metadata", "log_git_patch"], False)
    quiet |= {"auto_output_logging": False, "log_env_details": False}
    quiet["offline_directory"] = str(folder / "c")
    loggers.append(CometLogger(api_key="none", project="p", **quiet))
if "wandb" in packages:
    loggers.append(WandbLogger(save_dir=folder, offline=True, project="p"))
if "mlflow" in packages:
    loggers.append(MLFlowLogger(tracking_uri=f"file:{folder / 'm'}", run_id=None))
from support.short_run import Net, train
train([CSVLogger(folder, name="csv", version="0"), *loggers])
if "mlflow" in packages:  # resumed in the same run: its tables are replaced
    again = MLFlowLogger(tracking_uri=f"file:{folder / 'm'}", run_id=loggers[-1].run_id)
    train([CSVLogger(folder, name="csv", version="1"), again], max_steps=12)
if "comet_ml" in packages:
    loggers[0].experiment.end()
if "wandb" in packages:
    loggers[-2 if "mlflow" in packages else -1].experiment.finish()
"""
pytestmark = pytest.mark.slow  # the packages take long to import


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Train once with all services that are installed."""
    if not PACKAGES:
        pytest.skip("needs one of wandb, mlflow and comet_ml")
    folder = tmp_path_factory.mktemp("services")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "COMET_START_ONLINE": "0",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_SILENT": "true",
        "WANDB_DATA_DIR": str(folder),
    }
    finished = subprocess.run(
        [sys.executable, "-c", TRAINING, str(folder), *PACKAGES],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "goes on without" not in finished.stderr  # what monitors say of errors
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """Give the records that the monitors wrote to the disk, by tag."""
    records = read(folder / "csv" / "0" / "geometry.jsonl")[0]
    return {tag: [one for one in records if one.tag == tag] for tag in TAGS}


def assert_is_table(rows, written):
    """Compare rows (step, parameter, first column, ...) with records."""
    of_tensors = [row for row in rows if row[1] != "all parameters"]
    names = [(str(one.step), name) for one in written for name in one.tensors]
    assert [(str(row[0]), row[1]) for row in of_tensors] == names
    first = [value for one in written for value in next(iter(one.columns.values()))]
    found = [float(row[2]) for row in of_tensors]
    assert found == pytest.approx(first, rel=1e-6)


def test_wandb_holds_config_tables_at_their_steps_histograms_pictures_and_artifact(
    folder, expected
):
    pytest.importorskip("wandb")
    (run,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    config, history = config_of(run), history_of(run)
    assert config["geometry"]["LinfSmoothnessMonitor"]["num_probes"] == 4
    assert config["geometry"]["LinfSmoothnessMonitor"]["partitions"] == ["row", "tensor"]
    for tag in TAGS:
        rows = [row for row in history if f"{tag}/path" in row]
        assert [row["trainer/global_step"] for row in rows] == [one.step for one in expected[tag]]
        paths = [run.parent / "files" / row[f"{tag}/path"] for row in rows]
        tables = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        assert_is_table(
            [
                [row["trainer/global_step"], *line]
                for row, table in zip(rows, tables, strict=True)
                for line in table["data"]
            ],
            expected[tag],
        )
        assert tables[0]["columns"][0] == "parameter"
    key = "geometry/log10_grad/values"
    assert [row[key] for row in history if key in row] == [
        one.histogram.counts for one in expected[TAGS[0]]
    ]
    assert {"heatmap", "verdict", "fan"} <= {
        path.name.split("_")[0] for path in run.parent.glob("files/media/images/geometry/*.png")
    }
    (artifact,) = [record.artifact for record in records(run) if record.artifact.type == "geometry"]
    (content,) = artifact.manifest.contents
    assert content.path == "geometry.jsonl"
    on_disk = folder / "csv" / "0" / "geometry.jsonl"
    assert Path(content.local_path).read_bytes() == on_disk.read_bytes()


def test_mlflow_reads_back_params_tables_pictures_and_the_record_file(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{folder / 'm'}")
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'lightning_logs'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["geometry/LinfSmoothnessMonitor/num_probes"] == "4"
    names = {each.path for each in client.list_artifacts(run.info.run_id, "geometry")}
    assert {"geometry/geometry.jsonl", "geometry/heatmap.png"} <= names
    resumed = read(folder / "csv" / "1" / "geometry.jsonl")[0]
    for tag in TAGS:
        table = client.load_table(experiment.experiment_id, f"{tag}.json", [run.info.run_id])
        assert list(table.columns[:2]) == ["step", "parameter"]
        rows = table.itertuples(index=False, name=None)
        assert_is_table([list(row) for row in rows], [one for one in resumed if one.tag == tag])


def test_comet_archive_holds_parameters_tables_pictures_and_the_record_file(folder, expected):
    pytest.importorskip("comet_ml")
    (path,) = (folder / "c").glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("messages.json").decode().splitlines()
        payloads = [json.loads(line)["payload"] for line in lines]
        parameters = {
            each["param"]["paramName"]: each["param"]["paramValue"]
            for each in payloads
            if "param" in each
        }
        files = {
            about.get("fileName") or about.get("figName"): each["file_path"]
            for each in payloads
            if (about := each.get("additional_params"))
        }
        for tag in TAGS:
            text = archive.read(files[f"{tag}.csv"]).decode()
            headers, *rows = csv.reader(text.splitlines())
            assert headers[:2] == ["step", "parameter"]
            assert_is_table(rows, expected[tag])
        record_file = archive.read(files["geometry/geometry.jsonl"])
    assert parameters["geometry|LinfSmoothnessMonitor|num_probes"] == 4
    assert "geometry/heatmap" in files
    assert record_file == (folder / "csv" / "0" / "geometry.jsonl").read_bytes()


def test_settings_are_what_the_monitors_were_made_with():
    monitors = [GradientHeterogeneityMonitor(7), LinfSmoothnessMonitor(9, ["row"], name="b")]
    settings = settings_of(monitors)["geometry"]
    assert settings["GradientHeterogeneityMonitor"] == {"every_n_steps": 7, "on_error": "warn"}
    assert settings["LinfSmoothnessMonitor/b"]["partitions"] == ["row"]
    assert settings["LinfSmoothnessMonitor/b"]["num_probes"] == 16
    assert json.loads(json.dumps(settings)) == settings
