"""Predictor: a checkpoint, a run, the shipped weights or an .onnx file -> images in, probabilities out."""

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError, first_line
from mnist_lightning.models import MODELS
from mnist_lightning.processes import is_first_process
from mnist_lightning.run import Run, run_and_file
from mnist_lightning.settings import parsed
from mnist_lightning.training.checkpoint_content import FOUND
from mnist_lightning.training.checkpoints import STATE, load_weights, model_of, read_weights
from mnist_lightning.words import file_pairs, merged

PRETRAINED = "pretrained"  # what the shipped weights are called
AT_ONCE = 1000  # images of one forward: what is between the layers stays in a processor's cache
LEAST_PROBABILITY = 0.5  # of an answer, where a checkpoint brings no limits of its own


class Predictor:
    """Reads digits: images uint8 [N, 28, 28], bright on black, -> probabilities float32 [N, classes].

    Args:
        source: A checkpoint or .onnx file, a run's folder, or its name in checkpoints/; None: the shipped weights. Of
            a run of several networks it is the mean of their probabilities.
        model: The module that the checkpoint's weights go into, for one that is not of this project.

    Attributes:
        names: What each class is called.
        origin: What this is, in a line.
        normalize: Mean and standard deviation of a pixel in [0, 1], from the checkpoint.
        model: The module on the CPU, in evaluation mode; None of an .onnx file, and of several networks.
        members: The several networks, each by itself.
        file: Where it was read from; of several networks the first's.

    Raises UserError for a file that is missing, damaged or foreign, or without the package that reads it.
    """

    names: tuple[str, ...]
    origin: str
    normalize: tuple[float, float]
    model: nn.Module | None = None
    members: tuple["Predictor", ...] = ()

    def __init__(self, source: str | Path | None = None, model: nn.Module | None = None) -> None:
        self.file = _file(source)
        several, is_onnx = self.file.is_dir(), self.file.suffix == ".onnx"
        load = self._load_members if several else self._load_onnx if is_onnx else self._load_checkpoint
        found, names = load(model)
        self.temperature = float(found.get("temperature", 1.0))
        self.least_probability = float(found.get("least_probability", LEAST_PROBABILITY))
        self.least_energy = float(found.get("least_energy", float("-inf")))
        self.classes = len(self._rows(torch.zeros(1, 28, 28, dtype=torch.uint8))[0])
        self.names = tuple(map(str, names or range(self.classes)))
        if len(self.names) != self.classes:
            raise UserError(f"{self.file} has {self.classes} outputs and {len(self.names)} names: it is damaged")

    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities float32 [N, classes]."""
        return self.logits(images).softmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """What the softmax is taken of, float32 [N, classes]; divided by the temperature, if one was found."""
        if images.dtype != torch.uint8 or images.shape[1:] not in ((28, 28), (1, 28, 28)):
            raise ValueError(f"images are uint8 [N, 28, 28], these are {images.dtype} {list(images.shape)}")
        parts = images.view(-1, 28, 28).split(AT_ONCE) if len(images) else ()
        rows = [self._rows(part) for part in parts]
        return torch.cat(rows) / self.temperature if rows else torch.zeros(0, self.classes)

    def unsure(self, logits: Tensor) -> Tensor:
        """Whether there may be none of the classes on an image, or two that fit alike: bool [N]."""
        return (logits.softmax(1).amax(1) < self.least_probability) | (logits.logsumexp(1) < self.least_energy)

    # ------------------------------------------------------------------ a checkpoint

    def _load_checkpoint(self, model: nn.Module | None) -> tuple[Mapping[str, Any], Any]:
        checkpoint = read_weights(self.file)
        self.model = self._model(checkpoint, model).eval().requires_grad_(False)
        data = next((entry for entry in checkpoint.values() if _is_normalization(entry)), {"mean": 0.0, "std": 1.0})
        self.normalize = data["mean"], data["std"]
        normalized = MNISTDataModule(normalize=self.normalize).normalized
        forward = forward_of(self.model)

        def rows(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return forward(normalized(images)).float()

        self._rows = rows
        self.origin = _origin(checkpoint, self.file, self.model)
        return checkpoint.get(FOUND, {}), checkpoint.get("hyper_parameters", {}).get("class_names")

    def _model(self, checkpoint: dict[str, Any], model: nn.Module | None) -> nn.Module:
        """The module with its weights; one of the user's own as its run's config.yaml describes it."""
        name, config = checkpoint.get(STATE, {}).get("model"), Run(self.file.parent).config
        if model is None and name is not None and name not in MODELS and config.exists():
            pairs = [pair for pair in file_pairs(config) if pair[0].partition(".")[0] == "model"]
            model = parsed("test", merged(pairs)).model.make()
        if model is None:
            return model_of(checkpoint, self.file)
        load_weights(model, checkpoint, self.file)
        return model

    # ------------------------------------------------------------------ several networks

    def _load_members(self, model: nn.Module | None) -> tuple[Mapping[str, Any], Any]:
        folder, runs = self.file, [run for run in Run(self.file).members() if any(run.folder.glob("*.ckpt"))]
        self.members = members = tuple(Predictor(run.folder, copy.deepcopy(model)) for run in runs)
        check_alike(members)

        def rows(images: Tensor) -> Tensor:
            return torch.stack([member(images) for member in members]).mean(0).clamp_min(1e-30).log()

        self._rows, self.normalize, self.file = rows, (0.0, 1.0), members[0].file
        self.origin = f"{folder} (the mean of {len(members)} networks)"
        return {}, members[0].names

    # ------------------------------------------------------------------ an .onnx file

    def _load_onnx(self, model: nn.Module | None) -> tuple[Mapping[str, Any], Any]:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{self.file} is read by onnxruntime: pip install 'mnist-lightning[onnx]' brings it"
            ) from error
        try:
            session = onnxruntime.InferenceSession(str(self.file), providers=["CPUExecutionProvider"])
            known = session.get_modelmeta().custom_metadata_map
            names, found = (json.loads(known.get(key) or "{}") for key in ("class_names", FOUND))
        except Exception as error:  # its exceptions share no base
            raise UserError(f"{self.file} is no ONNX model that can be used: {first_line(error)[:200]}") from error
        taken, given = session.get_inputs()[0], session.get_outputs()[0]
        if list(taken.shape[1:]) not in ([28, 28], [1, 28, 28]):
            raise UserError(f"{self.file} takes {taken.shape}, not grey images [N, 28, 28]: see export")
        kind = torch.uint8 if "uint8" in taken.type else torch.float32

        def rows(images: Tensor) -> Tensor:
            pixels = images.to(kind).view(-1, *taken.shape[1:])
            return _as_logits(torch.from_numpy(session.run([given.name], {taken.name: pixels.numpy()})[0]).float())

        self._rows, self.normalize = rows, (0.0, 1.0)
        self.origin = f"{self.file} (ONNX)"
        return found, names


def chosen(root: Path, run: str | None = None, ckpt_path: str | None = None) -> Predictor:
    """The one that a command means: that which is named, else the newest run, else the shipped weights; says which."""
    named = ckpt_path is not None or run is not None
    if ckpt_path == PRETRAINED or not (named or Run.all(root)):
        predictor, hint = Predictor(), "" if named else "; there is no run yet, fit makes one"
    else:
        meant = Run.named(root, run) if run else None if ckpt_path else Run.newest(root)
        several = ckpt_path is None and meant is not None and meant.members()
        predictor = Predictor(meant.folder if meant and several else run_and_file(root, run, None, ckpt_path)[1])
        hint = "" if named else f"; --ckpt_path {PRETRAINED} takes the shipped weights"
    if is_first_process():
        print(f"mnist_lightning: with {predictor.origin}{hint}", file=sys.stderr)
    return predictor


def pretrained() -> Path:
    """The file of the shipped weights: installed with the package, or beside it."""
    installed = Path(__file__).with_name(PRETRAINED)
    folder = installed if installed.is_dir() else Path(__file__).parents[1] / "checkpoints" / PRETRAINED
    return folder / "digits.ckpt"


def _file(source: str | Path | None) -> Path:
    """The file that is meant."""
    if source in (None, PRETRAINED):
        return pretrained()
    path = Path(str(source))
    if path.is_file() or path.suffix in (".ckpt", ".onnx", ".pt", ".pth"):
        return path
    run = Run(path) if path.is_dir() else Run.named(Path("checkpoints"), str(source))
    if any(any(member.folder.glob("*.ckpt")) for member in run.members()):
        return run.folder
    return run.checkpoint("best" if run.best.exists() else "last")


def check_alike(predictors: Sequence[Predictor]) -> None:
    """Raises UserError unless all know the same classes."""
    first, *others = predictors
    for other in others:
        if other.names != first.names:
            one, two = (f"{it.file} has {it.classes} classes ({', '.join(it.names[:3])}, …)" for it in (first, other))
            raise UserError(f"{one}, {two}: average networks of the same classes")


def _is_normalization(entry: Any) -> bool:
    """Whether this is what MNISTDataModule, or a subclass of it, leaves in a checkpoint."""
    return isinstance(entry, dict) and all(isinstance(entry.get(name), float) for name in ("mean", "std"))


def forward_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """From normalised images [n, 1, 28, 28] to logits: `forward`, or the `predict_step` of a module that has none."""
    if type(model).forward is not LightningModule.forward:
        return model
    if type(model).predict_step is LightningModule.predict_step:
        raise BadSetting(f"{type(model).__name__} has neither forward nor predict_step: add one that gives logits")
    step: Any = model.predict_step
    return lambda images: _as_logits(step((images, torch.zeros(len(images), dtype=torch.uint8)), 0).float())


def _as_logits(rows: Tensor) -> Tensor:
    """Rows that may be probabilities, as their logarithms."""
    are = rows.min() >= 0 and torch.allclose(rows.sum(1), torch.ones(len(rows)), atol=1e-3)
    return rows.clamp_min(1e-30).log() if are else rows


def _origin(checkpoint: dict[str, Any], file: Path, model: nn.Module) -> str:
    """What a checkpoint is, in a line."""
    if file == pretrained():
        return f"the shipped weights ({checkpoint.get(FOUND, {}).get('origin', type(model).__name__)})"
    state, kind = checkpoint.get(STATE, {}), type(model).__name__
    epoch = f", epoch {state['epoch']}" if state.get("epoch") else ""
    source = (checkpoint.get("MNISTDataModule") or {}).get("source")
    return f"{file} ({kind}{epoch}{', SYNTHETIC digits, not MNIST' if source == 'synthetic' else ''})"
