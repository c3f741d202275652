"""MNIST from the network: all four files, each checked, or none."""

import hashlib
import os
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from mnist_lightning.errors import UserError


def download(folder: Path, timeout: float = 20.0) -> None:
    """Puts MNIST's four files where find_idx(folder) finds them: all of them, each checked, or none.

    Gives up (UserError) when mirrors let `timeout` seconds in all pass in silence, and after 30 times that in any case.
    """
    missing = "" if folder.exists() else f"there is no {folder}, and "  # it may be a slip of the pen
    try:
        bodies = _fetch_all(timeout)
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw) as part:
            for name, body in bodies.items():
                (Path(part) / name).write_bytes(body)
            for name in bodies:
                os.replace(Path(part) / name, raw / name)
    except OSError as exc:
        raise UserError(
            f"{missing}MNIST could not be downloaded ({exc}): put the four files into {folder}, "
            "or set --data.root to a folder that holds them"
        ) from exc


def _fetch_all(timeout: float) -> dict[str, bytearray]:
    """Name and content of each of the four files; OSError if no mirror gives them."""
    from torchvision.datasets import MNIST  # takes a second to import, and is seldom needed

    deadline = time.monotonic() + 30 * timeout
    bodies: dict[str, bytearray] = {}
    reasons = []
    for mirror in MNIST.mirrors:
        try:
            for name, md5 in MNIST.resources:
                if name not in bodies:
                    bodies[name] = _fetch(mirror + name, md5, timeout / len(MNIST.mirrors), deadline)
            return bodies
        except Exception as exc:  # those of http.client, ssl and urllib share no base
            reasons.append(f"{mirror}: {' '.join(str(exc).split())[:200] or type(exc).__name__}")
    raise OSError("; ".join(reasons))


def _fetch(url: str, md5: str, silence: float, deadline: float) -> bytearray:
    """The content of `url`; any exception where it does not arrive, is silent too long, or is not right.

    In a thread of its own, since a socket's time limit covers neither the look-up of a name, nor several
    addresses that hang one after the other, nor headers that drip in byte by byte.
    """
    body = bytearray()
    problems: list[Exception] = []

    def receive() -> None:
        try:
            with urllib.request.urlopen(url, timeout=2 * silence) as response:  # given up before that
                while piece := response.read1(1 << 16):
                    body.extend(piece)
                    if len(body) > 1 << 24:  # the largest of the four files has 9.9 MB
                        raise ValueError("sends far more than MNIST")
                    if time.monotonic() > deadline:
                        raise TimeoutError("too slow")
        except Exception as exc:
            problems.append(exc)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    seen = -1
    while thread.is_alive() and len(body) > seen:
        seen = len(body)
        thread.join(silence)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {silence:.3g} s, or too slow")
    if problems:
        raise problems[0]
    if hashlib.md5(body, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"wrong checksum of {url.rsplit('/', 1)[-1]}")
    return body
