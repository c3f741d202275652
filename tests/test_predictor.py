"""Predictor: from any file that holds a network to the same probabilities."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from samples import trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning import CNN, MLP, MNISTDataModule, Predictor, UserError
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.predictor import chosen, pretrained
from mnist_lightning.run import Run
from mnist_lightning.training.checkpoint_content import FOUND
from mnist_lightning.training.checkpoints import load_model, read_weights, write_checkpoint

IMAGES, LABELS = synthetic_digits(50, seed=3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a CNN, with mean 0.1 and standard deviation 0.3."""
    write_checkpoint(trained(), tmp_path / "cnn.ckpt")
    return tmp_path / "cnn.ckpt"


def with_entries(file: Path, **entries: object) -> Path:
    """The checkpoint, with other entries."""
    write_checkpoint(read_weights(file) | entries, file)
    return file


def test_probabilities_are_those_of_the_network(checkpoint: Path):
    predictor = Predictor(checkpoint)
    with torch.no_grad():
        expected = load_model(checkpoint)((IMAGES.unsqueeze(1) / 255 - 0.1) / 0.3)
    torch.testing.assert_close(predictor.logits(IMAGES), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(predictor(IMAGES), expected.softmax(1), rtol=0, atol=1e-6)
    assert (predictor(IMAGES).dtype, predictor.classes, predictor.normalize) == (torch.float32, 10, (0.1, 0.3))
    assert predictor.names == tuple("0123456789")
    assert predictor.origin == f"{checkpoint} (CNN)"
    assert torch.equal(predictor(IMAGES.unsqueeze(1)), predictor(IMAGES))


def test_any_number_of_images(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    predictor = Predictor(checkpoint)
    together = predictor(IMAGES)
    monkeypatch.setattr("mnist_lightning.predictor.AT_ONCE", 7)
    torch.testing.assert_close(predictor(IMAGES), together, rtol=0, atol=1e-6)
    one_by_one = torch.cat([predictor(image) for image in IMAGES.split(1)])
    torch.testing.assert_close(one_by_one, together, rtol=0, atol=1e-6)
    assert predictor(IMAGES[:0]).shape == (0, 10)


def test_images_are_bytes(checkpoint: Path):
    predictor = Predictor(checkpoint)
    for images in (IMAGES / 255, IMAGES[:, :20], IMAGES[0]):
        with pytest.raises(ValueError, match=r"images are uint8 \[N, 28, 28\], these are"):
            predictor(images)


def test_what_was_found_after_training(checkpoint: Path):
    plain = Predictor(checkpoint).logits(IMAGES)
    energies = plain.div(2).logsumexp(1)
    middle = float(energies.median())
    found = {"temperature": 2.0, "least_energy": middle, "least_probability": 0.0}
    predictor = Predictor(with_entries(checkpoint, **{FOUND: found}))
    torch.testing.assert_close(predictor(IMAGES), plain.div(2).softmax(1), rtol=0, atol=1e-6)
    assert predictor.unsure(predictor.logits(IMAGES)).tolist() == (energies < middle).tolist()
    found = {"least_probability": 0.9}
    predictor = Predictor(with_entries(checkpoint, **{FOUND: found}))
    rows = torch.tensor([[5.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert predictor.unsure(rows).tolist() == [False, True]


def test_names_of_classes(checkpoint: Path):
    settings = read_weights(checkpoint)["hyper_parameters"]
    if "class_names" not in MLP(hidden=[8]).hparams:
        pytest.skip("no model takes them yet")
    names = list("abcdefghij")
    assert Predictor(with_entries(checkpoint, hyper_parameters=settings | {"class_names": names})).names == tuple(names)


def test_a_run_by_its_folder_or_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = Path("checkpoints/a")
    run.mkdir(parents=True)
    run.joinpath("config.yaml").touch()
    write_checkpoint(trained(), run / "last.ckpt")
    for source in ("a", "checkpoints/a", tmp_path / run, run / "last.ckpt"):
        assert Predictor(source).origin.endswith("checkpoints/a/last.ckpt (CNN)")
    with pytest.raises(UserError, match="there is no run 'b'"):
        Predictor("b")


def test_what_a_plain_trainer_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, accelerator="cpu", **quiet)
    model = MLP(hidden=[8])
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=10)  # of bytes, which it divides by 255
    trainer.fit(model, loader, loader)
    trainer.save_checkpoint("plain.ckpt")
    with torch.no_grad():
        torch.testing.assert_close(Predictor("plain.ckpt").logits(IMAGES), model(IMAGES), rtol=0, atol=1e-5)


class Own(LightningModule):
    """Answers in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(784, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images.flatten(1))


class Steps(Own):
    """Answers with probabilities in `predict_step`."""

    forward = LightningModule.forward

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0].flatten(1)).softmax(1)


@pytest.mark.parametrize("kind", [Own, Steps])
def test_a_module_of_the_users_own(kind: type[Own], tmp_path: Path):
    model = kind()
    content = {"state_dict": dict(model.state_dict()), "hyper_parameters": {}}
    write_checkpoint(content, tmp_path / "own.ckpt")
    predictor = Predictor(tmp_path / "own.ckpt", kind())
    expected = model.net(IMAGES.flatten(1) / 255).softmax(1)
    torch.testing.assert_close(predictor(IMAGES), expected.detach(), rtol=0, atol=1e-6)
    assert predictor.classes == 3


@pytest.mark.parametrize(("form", "channel"), [("FLOAT", False), ("UINT8", False), ("FLOAT", True)])
def test_onnx(form: str, channel: bool, tmp_path: Path):
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    weights = torch.randn(784, 3)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=kinds.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    shape = ["n", *[1] * channel, 28, 28]
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("images", getattr(kinds, form), shape)],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(weights.numpy(), "weights")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"class_names": json.dumps(["a", "b", "c"])})
    onnx.save(model, tmp_path / "three.onnx")
    predictor = Predictor(tmp_path / "three.onnx")
    torch.testing.assert_close(predictor.logits(IMAGES), IMAGES.flatten(1).float() @ weights, rtol=1e-4, atol=1e-2)
    assert (predictor.names, predictor.classes, predictor.model) == (("a", "b", "c"), 3, None)


def test_what_is_no_onnx_model(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    for content in (b"", b"nothing", b"\x08\x08" * 100):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(UserError, match="is no ONNX model that can be used"):
            Predictor(tmp_path / "bad.onnx")
    with pytest.raises(UserError, match=r"is no ONNX model that can be used"):
        Predictor(tmp_path / "nowhere.onnx")


def test_onnxruntime_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "a.onnx").touch()
    with pytest.raises(UserError, match=re.escape("pip install 'mnist-lightning[onnx]'")):
        Predictor(tmp_path / "a.onnx")


# ---------------------------------------------------------------------- the shipped weights


def test_the_shipped_weights():
    predictor = Predictor()
    assert pretrained().stat().st_size < 5e6
    assert predictor.origin.startswith("the shipped weights (")
    assert isinstance(predictor.model, CNN)
    assert predictor.names == tuple("0123456789")
    assert predictor.least_energy > float("-inf")  # one was found
    page = pretrained().with_name("README.md").read_text()
    assert re.search(r"\| accuracy \| 99\.\d\d% of MNIST's 10,000 test images", page)


def test_the_shipped_weights_read_mnist(real_mnist: Path):
    data = MNISTDataModule(root=str(real_mnist), source="mnist", normalize="none")
    data.setup("test")
    images, labels = data.read("test")[:2]
    predictor = Predictor("pretrained")
    logits = predictor.logits(images)
    accuracy = float((logits.argmax(1) == labels).double().mean())
    page = pretrained().with_name("README.md").read_text()
    assert f"{accuracy:.2%} of MNIST's 10,000 test images" in page
    assert accuracy > 0.993
    assert predictor.unsure(logits).double().mean() < 0.03


def test_which_one_a_command_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, checkpoint: Path):
    monkeypatch.chdir(tmp_path)
    root = Path("checkpoints")
    assert chosen(root).file == pretrained()
    assert capsys.readouterr().err.startswith("mnist_lightning: with the shipped weights (")
    for name in ("a", "b"):
        root.joinpath(name).mkdir(parents=True)
        root.joinpath(name, "config.yaml").touch()
        write_checkpoint(trained(), root / name / "last.ckpt")
        Run(root / name).note_job([])
    assert chosen(root).file == root / "b" / "last.ckpt"
    told = "mnist_lightning: with checkpoints/b/last.ckpt (CNN); --ckpt_path pretrained takes the shipped weights\n"
    assert capsys.readouterr().err == told
    assert chosen(root, run="a").file == root / "a" / "last.ckpt"
    assert chosen(root, ckpt_path=str(checkpoint)).file == checkpoint
    assert chosen(root, ckpt_path="pretrained").file == pretrained()


@pytest.mark.slow
def test_predictor_is_imported_when_used():
    code = "import sys, mnist_lightning; assert 'torch' not in sys.modules; mnist_lightning.Predictor"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=120)
