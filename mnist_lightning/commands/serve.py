"""A page to draw on, and the same for programs, on this machine."""

import errno
import ipaddress
import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_lightning.console import say
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.words import few_flags

USAGE = """usage: python -m mnist_lightning serve [--run NAME | --ckpt_path FILE] [--port 8000] [--collect FOLDER]

A page to draw on: a digit is read while it is drawn, in a picture that is dropped, pasted or photographed.
Programs: POST /predict, POST /predict/batch; GET /health, /metrics, /openapi.json. Ctrl-C ends it.

  --run NAME        the run whose best checkpoint reads; without, the newest, else the shipped weights
  --ckpt_path FILE  a checkpoint or .onnx file; last or best of the run; pretrained: the shipped weights
  --port NUMBER     8000; 0 takes any that is free
  --host NAME       127.0.0.1: this machine only; 0.0.0.0: whoever can reach it, and knows the --token
  --token WORD      what clients must show: Authorization: Bearer WORD; the page asks for it, or takes it from
                    ADDRESS/#token=WORD. Also in the environment: MNIST_LIGHTNING_TOKEN
  --collect FOLDER  saves what people correct on the page, by label, as fit --data.root FOLDER reads it
  --trainer.default_root_dir FOLDER   where the runs are (checkpoints)
"""
FLAGS = ("run", "ckpt_path", "trainer.default_root_dir", "host", "port", "token", "collect", "debug")
TOKEN = "MNIST_LIGHTNING_TOKEN"
PATIENCE = 30  # seconds for what is under way when it is asked to stop


def command(name: str, words: list[str], signals: Signals) -> None:
    """Serves until it is asked to stop, by Ctrl-C or SIGTERM; then answers what is under way. That is no failure."""
    asked = few_flags(words, FLAGS, USAGE)
    if asked is None:
        return
    host, token = asked.get("host", "127.0.0.1"), asked.get("token", os.environ.get(TOKEN))
    _check_token(token)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        from python_multipart import multipart  # noqa: F401
    except ImportError as error:
        raise UserError("serve needs Starlette and uvicorn: pip install 'mnist-lightning[serve]'") from error
    with listening(host, _port(asked.get("port", "8000"))) as listener:
        loopback = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
        if not (loopback or token):
            raise BadSetting(f"--host {host} lets others in: give a --token that they have to know")
        _serve(asked, listener, host, token)


def _check_token(token: str | None) -> None:
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise BadSetting("--token takes letters, digits and signs of ASCII, no blanks around them")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise BadSetting(f"--port is {text}; it takes a number from 0 to 65535")
    return int(text)


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound to this address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise BadSetting(f"--host {host} is no name of this machine: give 127.0.0.1, or 0.0.0.0 for all") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except PermissionError as error:
        listener.close()
        raise UserError(f"port {port} takes an administrator's rights: give a --port from 1024 on") from error
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise BadSetting(f"--host {host} is no address of this machine: give 127.0.0.1, or 0.0.0.0") from error
        raise UserError(f"port {port} of {host} is in use: give another --port; 0 takes any that is free") from error
    return listener


def _serve(asked: Mapping[str, Any], listener: socket.socket, host: str, token: str | None) -> None:
    import torch
    import uvicorn
    from PIL import Image

    from mnist_lightning.predictor import chosen
    from mnist_lightning.serving.app import App
    from mnist_lightning.serving.collection import Collection
    from mnist_lightning.serving.guard import LOOPBACK
    from mnist_lightning.serving.protocol import Protocol

    root = Path(asked.get("trainer.default_root_dir", "checkpoints"))
    predictor = chosen(root, asked.get("run"), asked.get("ckpt_path"))
    collection = Collection(Path(asked["collect"]), predictor.names) if "collect" in asked else None
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    before = torch.get_num_threads()
    threads = max(1, before // 2)  # the other half decodes pictures
    app = App(
        predictor,
        model=_public(predictor.origin),
        collection=collection,
        token=token,
        hosts=None if token else {*LOOPBACK, host.lower()},
        starting=lambda: torch.set_num_threads(threads),
    )
    config = uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=PATIENCE,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what clients do wrong is theirs to know
    _announce(listener, host, token, collection)
    try:
        _until_stopped(uvicorn.Server(config), listener)
    finally:
        app.close()
        torch.set_num_threads(before)
    say(f"stopped; {sum(app.metrics.requests.values()):,} requests were answered")


def _public(origin: str) -> str:
    """What reads, without the folders that it lies in."""
    file, space, rest = origin.partition(" ")
    name = "/".join(Path(file).parts[-2:]) if Path(file).suffix else file
    return f"{name}{space}{rest}"


def _announce(listener: socket.socket, host: str, token: str | None, collection: Any) -> None:
    """Where it is, once it listens: a client that connects now is answered."""
    address, port = listener.getsockname()[:2]
    named = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(address, host)
    url = f"http://{f'[{named}]' if ':' in named else named}:{port}"
    say(f"drawings are read at {url} (Ctrl-C ends it)")
    if token:
        say("the page asks for the token, or takes it from the address: …/#token=TOKEN")
    if collection is not None:
        say(f"corrected drawings go to {collection.folder}: {collection.count:,} are there")
    sys.stdout.flush()


def _until_stopped(server: Any, listener: socket.socket) -> None:
    """Runs the server in a thread: a notebook's own loop goes on in this one, and signals come to this one."""
    problems: list[BaseException] = []
    ended = threading.Event()  # Thread.join takes a thread for ended when a signal breaks it off (until Python 3.13)

    def run() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:  # SystemExit, too
            problems.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="server", daemon=True).start()
    while not ended.is_set():
        try:
            ended.wait(0.5)
        except (Interrupted, KeyboardInterrupt):
            server.force_exit = server.should_exit  # asked a second time
            server.should_exit = True
    if problems:
        raise problems[0]
