"""A step of the fully connected recipes in plain NumPy, in JAX, in a bare torch loop and in this project, in turns.

    python benchmarks/limits.py --rounds 5 --write          (JAX: pip install -e ".[bench]")

Milliseconds a step of an epoch over the same batches, each way in a process of its own. NumPy and JAX do forward,
backward and update by hand and nothing else; JAX as one jitted scan over the epoch. Ours are whole trainings by `fit`,
of which the second epoch counts: what is compiled is compiled in the first. `arithmetic` is what the multiplications of
a step would take at the rate of a large float32 matrix product on as many threads.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section
from steps import MNIST, Recipe, bare
from turns import Side, answer, in_turns

from mnist_lightning.cli import main

RECIPES = ("nielsen_mlp", "simple_mlp", "fidle_dnn")
BETAS, EPS = (0.9, 0.999), 1e-8


class Epoch:
    """A recipe's images as rows, its first weights, and how many steps an epoch of whole batches has."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.recipe = Recipe(name)
        self.size = self.recipe.batch_size
        self.steps = len(self.recipe.labels) // self.size
        self.rows = self.recipe.floats(self.recipe.images).flatten(1).numpy()
        self.labels = self.recipe.labels.numpy()
        state = list(self.recipe.network().state_dict().values())
        self.weights = [tensor.numpy().T.copy() if tensor.ndim == 2 else tensor.numpy().copy() for tensor in state]
        self.mse = self.recipe.model_args.get("loss") == "mse"
        self.adam = self.recipe.model_args.get("optimizer", "Adam") == "Adam"
        self.lr = self.recipe.model_args.get("lr", 1e-3)

    def order(self) -> np.ndarray:
        return np.random.permutation(len(self.labels))[: self.steps * self.size].reshape(self.steps, self.size)


def in_numpy(epoch: Epoch) -> Callable[[], float]:
    weights, one_hot = epoch.weights, np.eye(10, dtype=np.float32)
    means, squares = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    done = 0

    def step(x: np.ndarray, y: np.ndarray) -> None:
        nonlocal done
        done += 1
        outputs = [x]
        for at in range(0, len(weights), 2):
            z = outputs[-1] @ weights[at] + weights[at + 1]
            last = at == len(weights) - 2
            outputs.append(1 / (1 + np.exp(-z)) if epoch.mse else z if last else np.maximum(z, 0))
        target = one_hot[y]
        if epoch.mse:
            grad = (outputs[-1] - target) * (2 / target.size)
        else:
            shares = np.exp(outputs[-1] - outputs[-1].max(1, keepdims=True))
            grad = (shares / shares.sum(1, keepdims=True) - target) / len(y)
        grads: list[np.ndarray] = []
        for at in range(len(weights) - 2, -2, -2):
            below, above = outputs[at // 2], outputs[at // 2 + 1]
            if epoch.mse:
                grad = grad * above * (1 - above)
            elif at < len(weights) - 2:
                grad = grad * (above > 0)
            grads[:0] = [below.T @ grad, grad.sum(0)]
            if at:
                grad = grad @ weights[at].T
        for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
            if not epoch.adam:
                w -= epoch.lr * g
                continue
            means[i] += (1 - BETAS[0]) * (g - means[i])
            squares[i] *= BETAS[1]
            squares[i] += (1 - BETAS[1]) * g * g
            rate = epoch.lr / (1 - BETAS[0] ** done)
            w -= rate * means[i] / (np.sqrt(squares[i] / (1 - BETAS[1] ** done)) + EPS)

    def run() -> float:
        start = time.perf_counter()
        for positions in epoch.order():
            step(epoch.rows[positions], epoch.labels[positions])
        return (time.perf_counter() - start) / epoch.steps

    return run


def in_jax(epoch: Epoch) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    rows, labels = jnp.asarray(epoch.rows), jnp.asarray(epoch.labels)

    def loss(weights: list[Any], x: Any, y: Any) -> Any:
        for at in range(0, len(weights), 2):
            x = x @ weights[at] + weights[at + 1]
            x = jax.nn.sigmoid(x) if epoch.mse else x if at == len(weights) - 2 else jax.nn.relu(x)
        if epoch.mse:
            return jnp.mean((x - jax.nn.one_hot(y, 10)) ** 2)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1))

    def step(state: Any, positions: Any) -> Any:
        weights, means, squares, done = state
        grads = jax.grad(loss)(weights, rows[positions], labels[positions])
        done = done + 1
        if not epoch.adam:
            return ([w - epoch.lr * g for w, g in zip(weights, grads, strict=True)], means, squares, done), None
        means = [BETAS[0] * m + (1 - BETAS[0]) * g for m, g in zip(means, grads, strict=True)]
        squares = [BETAS[1] * s + (1 - BETAS[1]) * g * g for s, g in zip(squares, grads, strict=True)]
        rate, share = epoch.lr / (1 - BETAS[0] ** done), 1 - BETAS[1] ** done
        new = [w - rate * m / (jnp.sqrt(s / share) + EPS) for w, m, s in zip(weights, means, squares, strict=True)]
        return (new, means, squares, done), None

    scan = jax.jit(lambda state, order: jax.lax.scan(step, state, order)[0])
    zeros = [jnp.zeros(w.shape) for w in epoch.weights]
    state: Any = ([jnp.asarray(w) for w in epoch.weights], zeros, zeros, jnp.zeros(()))

    def run() -> float:
        nonlocal state
        order = jnp.asarray(epoch.order())
        start = time.perf_counter()
        state = jax.block_until_ready(scan(state, order))
        return (time.perf_counter() - start) / epoch.steps

    return run


class SecondEpoch(Callback):
    """Seconds of the second epoch's steps."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        SecondEpoch.seconds = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        SecondEpoch.seconds = time.perf_counter() - SecondEpoch.seconds


def ours(epoch: Epoch, way: str) -> Callable[[], float]:
    words = ["fit", "--config", epoch.recipe.name, "--data.root", str(MNIST), "--data.test_each_epoch", "false"]
    words += ["--trainer.max_epochs", "2", "--trainer.callbacks", "limits.SecondEpoch", "--loop.step", way]
    words += ["--trainer.accelerator", "cpu"]

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            if main([*words, "--trainer.default_root_dir", folder]) != 0:
                raise SystemExit(f"{epoch.recipe.name}: fit failed")
        seconds: float = sys.modules["limits"].SecondEpoch.seconds  # imported a second time, by the callback's name
        return seconds / -(-len(epoch.labels) // epoch.size)

    return run


def in_bare_torch(epoch: Epoch) -> Callable[[], float]:
    seconds = bare(epoch.recipe)
    return lambda: seconds() / (epoch.steps * epoch.recipe.epochs)


WAYS: dict[str, Callable[[Epoch], Callable[[], float]]] = {
    "NumPy": in_numpy,
    "JAX": in_jax,
    "bare torch": in_bare_torch,
    "ours, eager": lambda epoch: ours(epoch, "eager"),
    "ours, compiled": lambda epoch: ours(epoch, "compiled"),
}


def arithmetic(epoch: Epoch) -> float:
    """Seconds of a step's multiplications at the rate of a large matrix product."""
    a = torch.rand(2048, 2048)
    rates = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        rates.append(2048**3 / (time.perf_counter() - start))
    matrices = [w for w in epoch.weights if w.ndim == 2]
    # forward, and the gradients of weights and inputs; of the images nobody asks for one
    return epoch.size * (3 * sum(w.size for w in matrices) - matrices[0].size) / max(rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=WAYS, help="measure this way for each line of standard input")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    if options.side:
        if not options.side.startswith("ours"):  # a loop without Lightning has not got this switch of its
            os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
        run = WAYS[options.side](Epoch(options.recipes[0]))
        answer(lambda turn: 1000 * run())
        raise SystemExit
    lines = ["| recipe | way | ms a step | of bare torch |", "| --- | --- | --- | --- |"]
    for name in options.recipes:
        sides = {way: Side(__file__, "--recipes", name, "--side", way) for way in options.ways}
        taken = in_turns(sides, options.rounds)
        for way, values in taken.items():
            ratios = [value / plain for value, plain in zip(values, taken.get("bare torch", values), strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            lines.append(f"| {name} | {way} | {statistics.median(values):.3f} | {spread} |")
        lines.append(f"| {name} | arithmetic | {1000 * arithmetic(Epoch(name)):.3f} | |")
        print("\n".join(lines[-len(taken) - 1 :]), flush=True)
    if options.write:
        command = " ".join(["python benchmarks/limits.py", *(word for word in sys.argv[1:] if word != "--write")])
        note = f"Medians of {options.rounds} rounds in turns (smallest–largest). {machine()}"
        write_section("Limits of a step", [f"`{command}`", "", note, "", *lines])
