"""Parts of gpu.py: what is between two kernels, and how far each recipe is from what its GPU could do."""

import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from by_hand import captured, wait
from gpu_turns import ALL, Table, data, graph_loop, measure, measured, options, passed_over, train
from lightning.pytorch.callbacks import Callback
from steps import Recipe
from torch.utils.flop_counter import FlopCounterMode


class Trace(Callback):
    """Everything that processor and GPU do, as torch.profiler sees it, in the fourth epoch of a training."""

    events: list[dict[str, Any]]

    def start(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if options.device.type == "cuda" else []
        self.profile = torch.profiler.profile(activities=kinds)
        wait(options.device)
        self.profile.start()

    def stop(self) -> None:
        wait(options.device)
        self.profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            self.profile.export_chrome_trace(str(file))
            self.events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("ph") == "X"]

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 3:
            self.start()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 3:
            self.stop()

    def kernels(self) -> list[dict[str, Any]]:
        """What the GPU did, in its order; on a CPU its operations."""
        kinds = ("kernel", "gpu_memcpy", "gpu_memset") if options.device.type == "cuda" else ("cpu_op",)
        return sorted((e for e in self.events if e.get("cat") in kinds), key=lambda event: event["ts"])

    def gaps(self) -> list[tuple[float, float]]:
        """When the GPU had nothing to do, and how long; microseconds."""
        kernels, found = self.kernels(), []
        end = kernels[0]["ts"]
        for kernel in kernels:
            if kernel["ts"] > end:
                found.append((end, kernel["ts"] - end))
            end = max(end, kernel["ts"] + kernel["dur"])
        return found

    def during(self, moment: float) -> str:
        """What the processor was at: the innermost of what it had begun, else what it had done before."""
        ours = [e for e in self.events if e.get("cat") in ("cpu_op", "cuda_runtime", "cuda_driver", "user_annotation")]
        begun = sorted((e for e in ours if e["ts"] <= moment), key=lambda event: event["ts"])
        at = [event["name"] for event in begun if event["ts"] + event["dur"] >= moment]
        return at[-1] if at else f"Python, after {begun[-1]['name'] if begun else 'nothing'}"


def profile() -> None:
    table = Table(
        "Profile of the steps on a GPU",
        "recipe | loop | steps | kernels a step | busy | gaps: median us | 95th percentile us | sum, % of the time",
        "The fourth epoch of about 200 steps, under torch.profiler, which slows the processor down.",
    )
    details: list[str] = []
    for name in options.recipes if options.recipes != ALL else ("simple_mlp", "cnn"):
        with passed_over(name):
            recipe, steps, traces = Recipe(name), 200, {"ours": Trace(), "graph by hand": Trace()}
            recipe.images, recipe.labels = (t[: steps * recipe.batch_size] for t in (recipe.images, recipe.labels))
            steps = -(-len(recipe.labels) // recipe.batch_size)
            with tempfile.TemporaryDirectory() as folder:
                trainer = {"max_epochs": 4, "default_root_dir": folder}
                train(name, callbacks=[traces["ours"]], data=data(train_size=len(recipe.labels)), trainer=trainer)
            graph, trace = graph_loop(recipe), traces["graph by hand"]
            graph.seconds(1)
            trace.start()
            graph.seconds(1)
            trace.stop()
            for loop, trace in traces.items():
                kernels, gaps = trace.kernels(), trace.gaps()
                took = max(k["ts"] + k["dur"] for k in kernels) - kernels[0]["ts"]
                idle, sums = sorted(gap for _, gap in gaps) or [0.0], defaultdict[str, float](float)
                late = [idle[int(share * (len(idle) - 1))] for share in (0.5, 0.95)]
                share, count = sum(idle) / took, len(kernels) / steps
                cells = [f"{1 - share:.1%}", *(f"{one:.1f}" for one in late), f"{share:.1%}"]
                table.add(name, loop, steps, f"{count:.1f}", *cells)
                for start, gap in sorted(gaps, key=lambda one: -one[1])[:5]:
                    middle, at = trace.during(start + gap / 2), (start - kernels[0]["ts"]) / took
                    details.append(f"{name}, {loop}: idle for {gap:.0f} us at {at:.0%} of the time: {middle[:90]}")
                for kernel in kernels:
                    short = re.sub(r"void |at::native::|\(anonymous namespace\)::", "", kernel["name"])[:100]
                    sums[short] += kernel["dur"]
                for kind, sum_of in sorted(sums.items(), key=lambda one: -one[1])[:10]:
                    details.append(f"{name}, {loop}: {sum_of / took:.1%}, {sum_of / steps:.1f} us a step: {kind}")
    for line in ["", "```", *details, "```"]:
        table.say(line)


# ---------------------------------------------------------------------- limits


def rate(work: Callable[[], Any], times: int = 10) -> float:
    """Seconds of one, the best of a few."""
    taken = []
    for _ in range(times):
        wait(options.device)
        start = time.perf_counter()
        work()
        wait(options.device)
        taken.append(time.perf_counter() - start)
    return min(taken[2:])


def card_rates() -> dict[str, float]:
    """FLOP/s of matrix products, bytes/s of a copy, seconds of a kernel in a graph that has nothing to do."""
    device, large = options.device, options.device.type == "cuda"
    n = 8192 if large else 256
    a, b = torch.randn(2, n, n, device=device)
    halves = a.bfloat16(), b.bfloat16()
    rates = {"float32": 2 * n**3 / rate(lambda: a @ b), "bf16": 2 * n**3 / rate(lambda: halves[0] @ halves[1])}
    torch.set_float32_matmul_precision("high")
    rates["TF32"] = 2 * n**3 / rate(lambda: a @ b)
    torch.set_float32_matmul_precision("highest")
    source = torch.empty(2**30 if large else 2**24, dtype=torch.uint8, device=device)
    target, one = torch.empty_like(source), torch.zeros(1, device=device)
    rates["copy"] = 2 * source.nbytes / rate(lambda: target.copy_(source))

    def chain() -> None:
        for _ in range(500):
            one.add_(1)

    rates["kernel"] = rate(captured(chain, device)) / 500
    return rates


def counted(recipe: Recipe) -> tuple[dict[str, float], float]:
    """FLOP of a step by the kind of operation, and bytes that it has to move."""
    net, size = recipe.network().train(), recipe.batch_size
    outputs = [recipe.images[:size].numel()]
    for layer in net:
        layer.register_forward_hook(lambda layer, args, output: outputs.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        recipe.loss(net(recipe.floats(recipe.images[:size])), recipe.labels[:size]).backward()
    flops = {"convolutions": 0.0, "products": 0.0}
    for operation, count in counter.get_flop_counts()["Global"].items():
        flops["convolutions" if "conv" in str(operation) else "products"] += count
    adam = recipe.model_args.get("optimizer", "Adam") == "Adam"
    states = 2 if adam else int("momentum" in recipe.model_args.get("optimizer_args", {}))
    # weights: read forward, backward and in the update, written; gradients: written, read; states: read, written
    weights = sum(parameter.numel() for parameter in net.parameters()) * (6 + 2 * states)
    return flops, 4 * weights + 2 * (2 if recipe.precision == "bf16-mixed" else 4) * sum(outputs)


def limits() -> None:
    rates = card_rates()
    table = Table(
        "Limits of a step on a GPU",
        "recipe | M multiplications a step | MB a step | arithmetic | memory | kernels a step | empty kernels | "
        "graph by hand | ours | graph / limit",
        f"Seconds an epoch. Measured rates: float32 {rates['float32'] / 1e12:.1f} TFLOP/s, TF32 "
        f"{rates['TF32'] / 1e12:.0f}, bf16 {rates['bf16'] / 1e12:.0f}; a copy {rates['copy'] / 1e12:.2f} TB/s, read "
        f"and written; a kernel in a graph that has nothing to do {1e6 * rates['kernel']:.2f} us. Convolutions in "
        "float32 may take TF32, as torch has it. Memory: weights and optimizer state as often as they are read or "
        "written, what layers put out twice. Limit: the slower of arithmetic and memory.",
    )
    for name in options.recipes:
        with passed_over(name):
            recipe = Recipe(name)
            half = recipe.precision == "bf16-mixed"
            if not {"graph", "ours"} <= measured.get(name, {}).keys():
                measure(recipe, 1, ("graph", "ours"))
            flops, moved = counted(recipe)
            steps = -(-len(recipe.labels) // recipe.batch_size)
            kinds = {"convolutions": "bf16" if half else "TF32", "products": "bf16" if half else "float32"}
            arithmetic = steps * sum(flops[kind] / rates[by] for kind, by in kinds.items())
            memory, trace, graph = steps * moved / rates["copy"], Trace(), graph_loop(recipe, at_once=1)
            trace.start()
            graph.replays[1, recipe.batch_size]()
            trace.stop()
            kernels, taken = len(trace.kernels()), [statistics.median(measured[name][way]) for way in ("graph", "ours")]
            table.add(
                name, f"{sum(flops.values()) / 2e6:.1f}", f"{moved / 1e6:.2f}", f"{arithmetic:.4f}", f"{memory:.4f}",
                kernels, f"{steps * kernels * rates['kernel']:.4f}", *(f"{one:.4f}" for one in taken),
                f"{taken[0] / max(arithmetic, memory):.1f}",
            )  # fmt: skip
