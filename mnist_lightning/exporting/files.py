"""The files that `export` writes: what is in them, and how each is read again to check it.

A file takes grey images as they lie in MNIST's files, uint8 [N, 28, 28], bright on black, and gives probabilities
[N, classes], with the logits beside them. Normalisation is inside.
"""

from __future__ import annotations

import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.errors import UserError, first_line, needs
from mnist_lightning.exporting.page import page
from mnist_lightning.predictor import Predictor

Reads = Callable[[Tensor], tuple[Tensor, float]]  # images -> probabilities [n, classes] and the seconds that it took
Exported = tuple[bytes, Reads | None]  # content of the file, and how it is read; None: by nothing that is here


class Grey(nn.Module):
    """uint8 [n, 28, 28] -> probabilities and logits, float32 [n, classes] each."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network: Any = predictor.model
        self.mean, self.std = predictor.normalize
        self.temperature = predictor.temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.unsqueeze(1).to(torch.float32) / 255
        logits = self.network((pixels - self.mean) / self.std).to(torch.float32) / self.temperature
        return logits.softmax(1), logits


def program(predictor: Predictor) -> torch.export.ExportedProgram:
    """The network as a graph, for any number of images."""
    if predictor.members:
        raise UserError(f"{predictor.origin} is no one network: give the checkpoint of one, as {predictor.file}")
    if predictor.model is None:
        raise UserError(f"{predictor.file} is exported already: give the checkpoint that it was made of")
    example = torch.zeros(2, 28, 28, dtype=torch.uint8)
    try:
        with quiet():
            return torch.export.export(
                Grey(predictor).eval(), (example,), dynamic_shapes={"images": {0: torch.export.Dim("n")}}
            )
    except Exception as error:  # what a module of the user's does cannot be foreseen
        kind = type(predictor.model).__name__
        raise UserError(f"{kind} cannot be exported by torch.export: {first_line(error)[:200]}") from error


def onnx(predictor: Predictor) -> Exported:
    """An ONNX model; `class_names` and `predictor` are among its metadata, as JSON."""
    with needs("onnx", "an ONNX file"):
        import onnxruntime  # noqa: F401  (it checks the file)
        import onnxscript  # noqa: F401  (torch.onnx writes with it)
    graph = program(predictor)
    with quiet():
        exported = torch.onnx.export(
            graph, dynamo=True, input_names=["images"], output_names=["probabilities", "logits"], verbose=False,
            dynamic_shapes={"images": {0: torch.export.Dim("n")}}, external_data=False,
        )  # fmt: skip
    assert exported is not None
    exported.model.metadata_props.update(metadata(predictor))
    content = exported.model_proto.SerializeToString()
    return content, read_by_onnxruntime(content)


def metadata(predictor: Predictor) -> dict[str, str]:
    """What goes with the weights: names of the classes, what they are, when an answer is unsure."""
    limits = {name: getattr(predictor, name) for name in ("least_probability", "least_energy")}
    return {
        "class_names": json.dumps(predictor.names),
        "origin": predictor.origin,
        "predictor": json.dumps({name: value for name, value in limits.items() if abs(value) != float("inf")}),
    }


def timed(function: Callable[[Tensor], Tensor]) -> Reads:
    """The function, with the seconds that the faster of two calls took."""

    def reads(images: Tensor) -> tuple[Tensor, float]:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            rows = function(images)
            seconds.append(time.perf_counter() - start)
        return rows, min(seconds)

    return reads


def read_by_onnxruntime(content: bytes) -> Reads:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return timed(lambda images: torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0]))


def quantized(content: bytes, images: Tensor) -> Exported:
    """The ONNX model in 8 bits, weights by channel; the ranges of activations are those of the images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(images.split(100))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    with TemporaryDirectory() as folder, quiet():
        whole, ready, small = (Path(folder) / name for name in ("whole.onnx", "ready.onnx", "small.onnx"))
        whole.write_bytes(content)
        quant_pre_process(whole, ready)
        quantize_static(
            ready, small, Images(), per_channel=True, weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "MaxPool", "Relu"],
        )  # fmt: skip
        content = small.read_bytes()
    return content, read_by_onnxruntime(content)


def pt2(predictor: Predictor) -> Exported:
    """A program of torch.export; the same metadata are among its extra files."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program(predictor), buffer, extra_files=metadata(predictor))
        module = torch.export.load(io.BytesIO(buffer.getvalue())).module()

    def reads(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)[0]

    return buffer.getvalue(), timed(reads)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters have to say while they work."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


FORMS: dict[str, Callable[[Predictor], Exported]] = {".onnx": onnx, ".pt2": pt2, ".html": page}
