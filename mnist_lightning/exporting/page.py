"""The page that `export` writes: drawing, picture preparation, network and weights in one file, without a server."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.errors import UserError
from mnist_lightning.models.layers import Network
from mnist_lightning.predictor import Predictor

HERE = Path(__file__).parent
BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)  # fmt: skip
# What the page's script knows under these names, with torch's default arguments
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.GELU, nn.Softplus,
    nn.Hardswish, nn.Identity,
)  # fmt: skip
TIME = 120  # seconds that a browser may take to read all images of the check


def page(predictor: Predictor) -> tuple[bytes, Any]:
    """The page, and how a browser that is found here reads images with it; None where there is none."""
    content = _page(predictor).encode()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    return content, browser and (lambda images: read_in_browser(browser, content, images))


def _page(predictor: Predictor) -> str:
    layers, weights = described(predictor)
    mean, std = predictor.normalize
    limits = {name: getattr(predictor, name) for name in ("least_probability", "least_energy")}
    network = {
        "names": predictor.names, "origin": predictor.origin, "mean": mean, "std": std,
        "temperature": predictor.temperature, **{k: v for k, v in limits.items() if abs(v) != float("inf")},
        "layers": layers, "weights": base64.b64encode(packed(weights)).decode(),
    }  # fmt: skip
    text = json.dumps(network).replace("<", "\\u003c")  # nothing in it may end the script
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in ("network.js", "drawing.js", "canvas.js"))
    whole = (HERE / "page.html").read_text(encoding="utf-8")
    return whole.replace("/*NETWORK*/", text).replace("/*SCRIPT*/", script)


def packed(weights: Tensor) -> bytes:
    """float32 without the lowest of four bytes, rounded: half of what would be left of float16 is lost by it."""
    bits = weights.to(torch.float32).contiguous().view(torch.int32)
    return (bits + 0x80).view(torch.uint8).view(-1, 4)[:, 1:].contiguous().numpy().tobytes()


def described(predictor: Predictor) -> tuple[list[dict[str, Any]], Tensor]:
    """The layers of the network as the page's script takes them, and all of their weights one after the other."""
    if predictor.members:
        raise UserError(f"{predictor.origin} is no one network: give the checkpoint of one, as {predictor.file}")
    network = getattr(predictor.model, "net", None)
    if not isinstance(network, Network):
        raise UserError(f"{predictor.file}: a page is made of an MLP or a CNN only; export it to .onnx")
    layers: list[dict[str, Any]] = []
    weights: list[Tensor] = []

    def keep(*tensors: Tensor) -> int:
        at = sum(tensor.numel() for tensor in weights)
        weights.extend(tensor.detach().float().contiguous().flatten() for tensor in tensors)
        return at

    for layer in network:
        if isinstance(layer, nn.Conv2d):
            bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
            steps = {"stride": layer.stride[0], "padding": int(layer.padding[0])}
            sizes = {"out": layer.out_channels, "kernel": layer.kernel_size[0], **steps}
            layers.append({"kind": "conv", **sizes, "at": keep(layer.weight, bias)})
        elif isinstance(layer, nn.Linear):
            bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
            layers.append({"kind": "linear", "out": layer.out_features, "at": keep(layer.weight, bias)})
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            state: Any = layer
            factor = state.weight / torch.sqrt(state.running_var + layer.eps)
            layers.append({"kind": "scale", "at": keep(factor, state.bias - state.running_mean * factor)})
        elif isinstance(layer, nn.ZeroPad2d):
            layers.append({"kind": "pad", "by": layer.padding[0]})
        elif isinstance(layer, nn.MaxPool2d):
            layers.append({"kind": "pool", "window": layer.kernel_size})
        elif isinstance(layer, ACTIVATIONS):
            layers.append({"kind": "activation", "name": type(layer).__name__})
        elif not isinstance(layer, nn.Flatten | nn.Dropout | nn.Dropout2d):
            raise UserError(f"a page cannot compute {type(layer).__name__}: export it to .onnx")
    return layers, torch.cat(weights)


def read_in_browser(browser: str, content: bytes, images: Tensor) -> tuple[Tensor, float]:
    """Probabilities [n, classes] of the images, and the seconds it took, by the page in a browser without a window."""
    pixels = base64.b64encode(images.contiguous().numpy().tobytes()).decode()
    check = f"""<script>
    const bytes = Uint8Array.from(atob("{pixels}"), (letter) => letter.charCodeAt(0)), rows = [];
    const start = performance.now();
    for (let i = 0; i < bytes.length; i += 784) rows.push(softmax(logits(bytes.subarray(i, i + 784))));
    const answer = JSON.stringify([rows, (performance.now() - start) / 1000]);
    document.body.innerHTML = "<pre id=checked>" + answer + "</pre>";
    </script></body>"""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "page.html"
        file.write_bytes(content.replace(b"</body>", check.encode()))
        words = [browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        words += ["--no-sandbox"] if sys.platform == "linux" else []
        words += [f"--user-data-dir={folder}/profile", "--dump-dom", file.as_uri()]
        try:
            told = subprocess.run(words, capture_output=True, text=True, timeout=TIME, encoding="utf-8").stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{browser} did not open the page to check it ({error})") from error
    found = re.search(r'<pre id="checked">(.*?)</pre>', told, re.DOTALL)
    if found is None:
        raise UserError(f"{browser} opened the page and it told nothing: run the browser by hand to see why")
    rows, seconds = json.loads(html.unescape(found[1]))
    return torch.tensor(rows), seconds
