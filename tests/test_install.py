"""The project as others get it: a wheel, installed into an empty environment, used from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distributions
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
BESIDE = ("mnist_lightning.configs", "mnist_lightning.pretrained")  # their folders lie elsewhere


def run(*words: object, **options: object) -> str:
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=600, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_package_is_installed():
    """They are listed by hand, because some of them lie beside the package."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = [file.parent.relative_to(PROJECT) for file in PROJECT.glob("mnist_lightning/**/__init__.py")]
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), *BESIDE])


@pytest.mark.slow
# to look pip up by find_spec would have setuptools, which torch.compile uses, take another distutils
@pytest.mark.skipif("pip" not in {found.name for found in distributions()}, reason="pip builds the wheel")
def test_a_wheel_trains_from_an_empty_folder(tiny_mnist: Path, tmp_path: Path):
    source, empty, python = tmp_path / "source", tmp_path / "empty", tmp_path / "venv" / "bin" / "python"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, source)
    for name in ("mnist_lightning", "configs", "checkpoints/pretrained"):
        shutil.copytree(PROJECT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    venv.create(tmp_path / "venv")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", *tmp_path.glob("*.whl"))
    empty.mkdir()
    # what it needs is lent; a folder of PYTHONPATH brings no editable installs
    there = {"cwd": empty, "env": os.environ | {"PYTHONPATH": str(Path(pytest.__file__).parents[1])}}
    home = run(python, "-c", "import mnist_lightning; print(mnist_lightning.__file__)", **there)
    assert Path(home.strip()).is_relative_to(tmp_path / "venv")
    words = ["--data.root", tiny_mnist, "--trainer.max_epochs", 1]
    run(python.with_name("mnist-lightning"), "fit", "--config", "simple_mlp", *words, **there)
    assert json.loads((empty / "checkpoints" / "simple_mlp" / "test.json").read_text())["images"] == 100
