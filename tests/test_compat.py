"""RecBole's repairs: each cause fails without its patch, works with it, and nothing outside RecBole changes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdenoise.errors import UserError
from recdenoise.recbole_adapter import compat
from recdenoise.recbole_adapter.recbole_config import build_config, read_yaml, resolve_model
from tests.tiny_recbole import build_model, tiny_config, write_inter

compat.apply()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inter(tmp_path)
    return tmp_path


class Pickled:
    """Something that strict loading refuses."""


def test_apply_again_changes_nothing() -> None:
    from recbole.config import Config

    before = Config.compatibility_settings
    compat.apply()
    assert Config.compatibility_settings is before
    assert np.float is np.float64  # type: ignore[attr-defined]
    assert np.bool is np.bool_


def test_global_torch_load_stays_strict(tmp_path: Path) -> None:
    import recbole.model.general_recommender.neumf as neumf
    import recbole.trainer.trainer as trainer

    path = tmp_path / "checkpoint.pth"
    torch.save({"config": Pickled()}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    for module in (trainer, neumf):
        assert isinstance(module.torch.load(path)["config"], Pickled)
        assert module.torch.Tensor is torch.Tensor
        with pytest.raises(pickle.UnpicklingError):
            module.torch.load(path, weights_only=True)


def test_model_outside_the_general_package_loads_pretraining() -> None:
    module = sys.modules[compat.get_model("S3Rec").__module__]
    assert module.torch.load is not torch.load  # type: ignore[attr-defined]


def test_dok_update_is_fast_and_complete() -> None:
    from scipy.sparse import dok_matrix

    n = 200_000
    keys = list(zip(range(n), np.random.default_rng(0).integers(0, 50, n), strict=True))
    matrix = dok_matrix((n, 50), dtype=np.float32)
    started = time.perf_counter()
    matrix._update(dict.fromkeys(keys, 1))
    assert time.perf_counter() - started < 1
    coo = matrix.tocoo()
    assert coo.nnz == n
    assert sorted(zip(coo.row, coo.col, strict=True)) == sorted(keys)
    assert coo.dtype == np.float32


def run_python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quick_start_imports_without_ray() -> None:
    out = run_python(
        "import sys\n"
        "class NoRay:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ray': raise ModuleNotFoundError('no ray here', name='ray')\n"
        "sys.meta_path.insert(0, NoRay())\n"
        "from recdenoise.recbole_adapter import compat; compat.apply()\n"
        "from recbole.quick_start import run_recbole, load_data_and_model\n"
        "import recbole.quick_start.quick_start as q\n"
        "print(q.tune.report(recall=1.0), 'ray' in sys.modules, load_data_and_model is compat.load_data_and_model)\n"
        "import recdenoise.recbole_adapter.models\n"
        "print(q.get_model is compat.get_model, 'torch_geometric' in sys.modules)"
    )
    assert out.split("\n")[:2] == ["None False True", "True False"]


def test_quick_start_uses_a_ray_that_is_there() -> None:
    out = run_python(
        "import sys, types\n"
        "ray, tune = types.ModuleType('ray'), types.ModuleType('ray.tune')\n"
        "ray.tune, tune.report = tune, lambda **m: print('reported', m)\n"
        "from recdenoise.recbole_adapter import compat; compat.apply()\n"
        "import recbole.quick_start.quick_start as q\n"
        "sys.modules.update({'ray': ray, 'ray.tune': tune})\n"
        "q.tune.report(recall=1.0)"
    )
    assert out.strip() == "reported {'recall': 1.0}"


def test_stock_run_recbole_trains_saves_and_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.chdir(folder)
    from recbole.quick_start import load_data_and_model, run_recbole

    options = {
        "data_path": str(folder),
        "epochs": 1,
        "show_progress": False,
        "gpu_id": "",
        "checkpoint_dir": str(folder / "saved"),
        "state": "ERROR",
    }
    result = run_recbole(model="NGCF", dataset="tiny", config_dict=options)
    assert 0 <= result["test_result"]["recall@10"] <= 1
    (saved,) = (folder / "saved").glob("*.pth")
    config, model, *_ = load_data_and_model(str(saved))
    assert (config["model"], type(model).__name__) == ("NGCF", "NGCF")


@pytest.mark.parametrize("name", ["Neumf", "a.b", "", "../x"])
def test_unknown_model_lists_those_that_exist(name: str) -> None:
    with pytest.raises(UserError, match=r"model.*CDAE.*GMF.*NeuMF"):
        build_config(name, "ml-100k")
    if name:
        with pytest.raises(UserError, match=rf"Unknown model '{name}'"):
            compat.get_model(name)


def test_models_are_ours_where_we_have_them() -> None:
    from recbole.model.general_recommender import NeuMF

    assert resolve_model("NeuMF", own_models=False) is NeuMF
    assert resolve_model("NeuMF") is not NeuMF
    assert issubclass(resolve_model("NeuMF"), NeuMF)
    assert compat.get_model("NeuMF") is NeuMF
    assert compat.get_model("GMF") is resolve_model("GMF")
    assert {"MF", "GMF", "NeuMF", "EASE"} <= set(compat.valid_models())


def test_command_line_is_read_only_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["pytest", "--embedding_size=7", "tests/", "--learning_rate=1e-2"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert tiny_config(folder, "MF", embedding_size=5)["embedding_size"] == 5
    read = build_config("MF", "tiny", config_dict={"data_path": str(folder)}, read_command_line=True)
    assert (read["embedding_size"], read["learning_rate"]) == (7, 0.01)
    assert sys.argv is arguments


def test_strings_are_literals_and_never_code(folder: Path) -> None:
    marker = folder / "ran"
    config = tiny_config(
        folder,
        "NeuMF",
        mlp_hidden_size="[8, 4]",
        dropout_prob="1e-1",
        evil=f"open({str(marker)!r}, 'w')",
        flag="true",
        name="deca_p",
        ratio="1/0",
    )
    assert config["mlp_hidden_size"] == [8, 4]
    assert config["dropout_prob"] == 0.1
    assert config["flag"] is True
    assert (config["name"], config["ratio"]) == ("deca_p", "1/0")
    assert not marker.exists()


def test_use_gpu_false_means_cpu_and_hides_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("3", None):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3") if value else monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        config = tiny_config(folder, "MF", use_gpu=False)
        assert config["device"] == torch.device("cpu")
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == value
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert build_config("MF", "tiny", config_dict={"data_path": str(folder)})["gpu_id"] == "3"


def test_files_outrank_defaults_and_the_dictionary_outranks_files(folder: Path) -> None:
    first, second = folder / "a.yaml", folder / "b.yaml"
    first.write_text("model: MF\ndataset: tiny\nembedding_size: 4\nlearning_rate: 1e-3\n", encoding="utf-8")
    second.write_text(f"data_path: {folder}\nembedding_size: 6\ndenoiser: {{name: deca_p, c_1: 1000}}\n")
    config = build_config(config_file_list=[first, second], config_dict={"seed": 7})
    assert (config["embedding_size"], config["learning_rate"], config["seed"]) == (6, 0.001, 7)
    assert config["denoiser"] == {"name": "deca_p", "c_1": 1000}
    assert config.model_class is resolve_model("MF")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", r"bad\.yaml, line 3"),
        (b"a: 1\n\tb: 2\n", r"bad\.yaml, line 2"),
        (b"- a\n- b\n", "must hold a mapping"),
        (b"1: a\n", "must hold a mapping"),
        (b"a: \xff\xfe\n", "cannot be read"),
        (b"a: !!python/object/apply:os.getcwd []\n", r"bad\.yaml, line 1"),
        (b"a: \x00\n", "is not YAML"),
        (b"d: 2020-13-45\n", "is not YAML"),
    ],
)
def test_bad_yaml_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_config("MF", "ml-100k", config_file_list=[path])


def test_missing_and_empty_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_unknown_data_set_lists_neighbours(folder: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown data set 'tinny'.*'tiny'.*ml-100k, tiny"):
        build_config("MF", "tinny", config_dict={"data_path": str(folder)})
    (folder / "hollow").mkdir()
    with pytest.raises(UserError, match=r"'hollow'.*has no file hollow\.inter"):
        build_config("MF", "hollow", config_dict={"data_path": str(folder)})
    with pytest.raises(UserError, match="Name a data set"):
        build_config("MF")
    assert build_config("MF", "ml-100k")["data_path"].endswith("ml-100k")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["Recal"]}, r"Unknown metric 'Recal'.*recall"),
        ({"metrics": [3]}, "Unknown metric 3"),
        ({"topk": [0]}, "topk must be a positive integer"),
        ({"topk": "ten"}, "topk"),
        ({"eval_args": "RO"}, "eval_args"),
        ({"train_neg_sample_args": {"distribution": "zipf"}}, "zipf"),
        ({"valid_metric": 3}, "RecBole refuses"),
    ],
)
def test_what_recbole_refuses_is_one_sentence(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(folder, "MF", **options)


def test_graph_model_builds_through_dok(folder: Path) -> None:
    model = build_model(folder, "LightGCN", own_models=False)
    assert model.norm_adj_matrix._nnz() > 0
