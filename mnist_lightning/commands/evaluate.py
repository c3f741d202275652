"""`validate`, `test` and `predict`, and the test at the end of `fit`."""

import csv
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mnist_lightning import __version__
from mnist_lightning.commands.average import average, average_of, parted
from mnist_lightning.console import console, say
from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError, first_line
from mnist_lightning.files import write_whole
from mnist_lightning.models import MODELS
from mnist_lightning.predictor import PRETRAINED, Predictor, pretrained
from mnist_lightning.processes import Signals
from mnist_lightning.run import Run, base_name, run_and_file
from mnist_lightning.settings import parsed, taken_by
from mnist_lightning.training.causes import told
from mnist_lightning.training.checkpoint_content import FOUND
from mnist_lightning.training.checkpoints import STATE, load_weights, model_of, read_weights
from mnist_lightning.training.trainer import SignalsAgain, make_trainer
from mnist_lightning.words import Pairs, file_pairs, merged, pairs_of_words, root_and_name, with_files

WHERE = ("run", "ckpt_path", "trainer.default_root_dir")  # what a --config says here: which run is meant


def command(stage: str, words: list[str], signals: Signals) -> None:
    """Evaluates a checkpoint, by default the best of the newest run; of several the mean of their probabilities."""
    members, words = parted(words)
    if len(members) > 1:
        return average(stage, members, words)
    pairs = pairs_of_words(words)
    pairs = [pair for pair in with_files(pairs) if pair[0] in WHERE] + pairs
    asked = merged(pairs)
    if "help" in asked:
        parsed(stage, asked)
    recipe = next((file for name, file in pairs if name == "config"), None)
    base = base_name(recipe, None)
    if stage == "test" and _is_of_predictors(asked, base):
        return _test_predictors(asked, base)
    run, file = meant(stage, *root_and_name(asked), base, asked.get("ckpt_path"))
    checkpoint = read_weights(file)
    config = parsed(stage, merged(settings_of_training(checkpoint, run) + pairs))
    model = config.model.make() if "model" in config else model_of(checkpoint, file)
    trainer = make_trainer(config.trainer.arguments(), [SignalsAgain(signals)])
    result = run_stage(trainer, model, config.data.make(), file, stage)
    if trainer.is_global_zero:
        tell(result, run.folder if run else Path() if file == pretrained() else file.parent)


def _is_of_predictors(asked: dict[str, Any], base: str | None) -> bool:
    """Whether this test is one that a Trainer knows nothing of: of several networks, or of images that are moved."""
    root, name = root_and_name(asked)
    if asked.get("tta", "none") != "none" or asked.get("ckpt_path"):
        return asked.get("tta", "none") != "none"
    return bool((Run.named(root, name) if name else Run.newest(root, base)).members())


def _test_predictors(asked: dict[str, Any], base: str | None) -> None:
    root, name = root_and_name(asked)
    run = None if asked.get("ckpt_path") else Run.named(root, name) if name else Run.newest(root, base)
    settings = {flag: value for flag, value in asked.items() if flag not in WHERE}
    if run is None or not run.members():
        _, file = meant("test", root, name, base, asked.get("ckpt_path"))
        console.print(average_of([Predictor(file)], settings)[1])
        return
    found, table = average_of(Predictor(run.folder).members, settings)
    console.print(table)
    if "tta" not in settings:  # test.json is of the images as they are
        keep_result(found | {"checkpoint": str(run)}, run.result)


def meant(stage: str, root: Path, name: str | None, base: str | None, ckpt_path: Any) -> tuple[Run | None, Path]:
    """The run and the checkpoint; the shipped weights where they are named, and to predict where there is no run."""
    if ckpt_path == PRETRAINED or (stage == "predict" and not (ckpt_path or name or Run.all(root))):
        say(f"with {Predictor().origin}")
        return None, pretrained()
    return run_and_file(root, name, base, ckpt_path)


def settings_of_training(checkpoint: dict[str, Any], run: Run | None) -> Pairs:
    """The settings that a checkpoint was trained with, so far as they matter now."""
    state, ours = checkpoint.get(STATE, {}), checkpoint.get("MNISTDataModule")
    own = {"data": not ours, "model": state.get("model", "MLP") not in MODELS}  # of the user's, as config.yaml has it
    written = file_pairs(run.config) if run and any(own.values()) else []
    pairs = [pair for pair in written if own.get(pair[0].partition(".")[0])]
    if state:
        pairs.append(("trainer.precision", state["precision"]))
    if ours:
        known = {"source": ours["source"], "normalize": [ours["mean"], ours["std"]]}
        known = checkpoint.get("datamodule_hyper_parameters", {}) | known
        taken = taken_by("data", MNISTDataModule)  # an earlier version had others besides
        pairs += [(f"data.{name}", value) for name, value in known.items() if f"data.{name}" in taken]
    return pairs


def run_stage(trainer: Trainer, model: Any, data: Any, file: Path, stage: str) -> dict[str, Any]:
    """Loads the weights of `file` and runs a stage over all images, each counted once."""
    checkpoint = read_weights(file)
    load_weights(model, checkpoint, file)
    ours = isinstance(data, MNISTDataModule)
    if ours:
        data.trained_on = checkpoint.get("MNISTDataModule", {}).get("fingerprint")
        data.expected_names = names_of(model)
    if stage == "validate" and ours and "MNISTDataModule" in checkpoint:
        held_out = checkpoint.get("datamodule_hyper_parameters", {}).get("val_size")
        if not held_out:
            raise UserError(f"{file} was trained on all training images: there are none to validate on; use test")
        if data.hparams["val_size"] != held_out:
            raise BadSetting(f"--data.val_size: {file} held out {held_out} images; it was trained on the others")
    try:
        outputs = getattr(trainer, stage)(model, datamodule=data, **({} if stage == "predict" else {"verbose": False}))
    except MisconfigurationException as error:
        raise BadSetting(f"--trainer: {first_line(error)}") from error
    except (RuntimeError, MemoryError) as error:
        if cause := told(error, trainer, model, None):
            raise cause from error
        raise
    temperature = checkpoint.get(FOUND, {}).get("temperature", 1.0)
    result = {"source": data.source if ours else type(data).__name__, "checkpoint": str(file)}
    if stage == "predict":
        if not outputs:
            raise UserError("nothing was predicted: see --trainer.limit_predict_batches")
        labels = data.labels("test").cpu() if ours else None
        positions, rows = _gathered(trainer, outputs)
        tempered = (positions, (rows.clamp_min(1e-38).log() / temperature).softmax(1))
        return result | {"predictions": tempered, "labels": labels, "names": names_of(model)}
    split, state = ("val" if stage == "validate" else stage), checkpoint.get(STATE, {})
    return _measured(trainer, split) | result | {
        "split": split,
        "temperature": temperature,
        "precision": str(trainer.precision),
        "epoch": state.get("epoch", checkpoint.get("epoch")),
        "step": state.get("step", checkpoint.get("global_step")),
        "seed": state.get("seed", checkpoint.get("datamodule_hyper_parameters", {}).get("seed")),
        "versions": {"mnist_lightning": __version__, "torch": version("torch"), "lightning": version("lightning")},
    }  # fmt: skip


def names_of(model: Any) -> tuple[str, ...] | None:
    """What the classes of a model are called, where it says so."""
    names = tuple(model.hparams.get("class_names") or map(str, range(model.hparams.get("classes") or 0)))
    return names or None


def _measured(trainer: Trainer, split: str) -> dict[str, Any]:
    """Loss and accuracy, and whatever else was logged; how many images that are, where the loader knows."""
    found = {name.removeprefix(f"{split}_"): float(value) for name, value in trainer.callback_metrics.items()}
    if not found:  # --trainer.barebones keeps nothing
        raise UserError(f"nothing was evaluated: see --trainer.limit_{split}_batches")
    measured = {"accuracy": found.pop("acc", None), "loss": found.pop("loss", None)}
    loader = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    batches, *_ = trainer.num_val_batches if split == "val" else trainer.num_test_batches
    if isinstance(loader, TensorLoader) and measured["accuracy"] is not None:
        images = min(batches * loader.global_batch_size, loader.size)
        correct = round(measured["accuracy"] * images)
        measured |= {"accuracy": correct / images, "images": images, "correct": correct}
    return {name: value for name, value in measured.items() if value is not None} | found


def _gathered(trainer: Trainer, outputs: Any) -> tuple[Tensor, Tensor]:
    """Positions in the data set [n] and probabilities [n, classes] of all ranks, in the order of the data set."""
    if not all(isinstance(output, Tensor) and output.ndim == 2 for output in outputs):
        raise UserError("predict_step must return one row an image, of one number a class")
    rows = torch.cat([output.float().cpu() for output in outputs])
    loader, ranks = trainer.predict_dataloaders, range(trainer.world_size)
    if isinstance(loader, TensorLoader):
        positions = loader.positions(len(outputs), trainer.global_rank).cpu()
    else:  # Lightning deals images out one by one
        positions = torch.arange(len(rows)) * len(ranks) + trainer.global_rank
    everyone: list[Any] = [(positions, rows) for _ in ranks]
    if len(ranks) > 1:
        torch.distributed.all_gather_object(everyone, (positions, rows))
    positions, rows = (torch.cat(tensors) for tensors in zip(*everyone, strict=True))
    if rows.min() < 0 or not torch.allclose(rows.sum(1), torch.ones(len(rows)), atol=1e-3):
        rows = rows.softmax(1)  # logits of a model of the user's
    order = positions.argsort()
    return positions[order], rows[order]


def tell(result: dict[str, Any], place: Path) -> None:
    """The table at the end, and the same in a file of the run folder."""
    if "predictions" in result:
        return _write_predictions(result, place / "predictions.csv")
    title = "Test result" if result["split"] == "test" else "Validation result"
    table = Table(title=title, show_header=False, min_width=50)
    table.add_column()
    table.add_column(overflow="fold")  # a path is there to be copied
    for name, value in result.items():
        if name == "source":
            break
        if name == "accuracy":
            of = f"  ({result['correct']:,} of {result['images']:,} images)" if "correct" in result else ""
            table.add_row("accuracy", f"[bold]{value:.2%}[/]{of}")
        elif name not in ("images", "correct"):
            table.add_row(escape(name), f"{value:.4f}")
    source = result["source"]
    table.add_row("images of", "[bold red]SYNTHETIC digits, not MNIST[/]" if source == "synthetic" else escape(source))
    moments = [f"  ({name} {result[name]})" for name in ("epoch", "step") if result[name]]
    table.add_row("checkpoint", escape("".join([result["checkpoint"], *moments[:1]])))
    table.add_row("run folder", escape(str(place)))
    console.print(table)
    keep_result({key: value for key, value in result.items() if key != "split"}, place / f"{result['split']}.json")


def keep_result(result: dict[str, Any], file: Path) -> None:
    """Writes what a stage came to; a folder that cannot be written to withholds nothing."""
    try:
        write_whole(json.dumps(result, indent=2) + "\n", file)
    except UserError as error:  # what was asked for is above
        say(str(error))


def _write_predictions(result: dict[str, Any], path: Path) -> None:
    """One row an image of the test set: its label, where that is known, the predicted digit, its probability."""
    (positions, rows), labels = result["predictions"], result["labels"]
    best = rows.max(1)
    columns = {"image": positions, "label": None if labels is None else labels[positions], "prediction": best.indices}
    columns = {name: column.tolist() for name, column in columns.items() if column is not None}
    if result["names"]:
        called = {name: [result["names"][at] for at in columns[name]] for name in columns if name != "image"}
        columns |= called
    columns["probability"] = [f"{value:.6f}" for value in best.values.tolist()]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    try:
        write_whole(text.getvalue(), path)
    except UserError as error:
        print(text.getvalue(), end="")
        raise UserError(f"{error}; the table is on standard output") from error
    say(f"{len(positions):,} predictions for {result['source']} test images: {path}")
