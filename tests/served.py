"""A server in a thread of the test's process, on a port that was free."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image, ImageDraw

from mnist_lightning.commands.serve import listening
from mnist_lightning.serving.app import App
from mnist_lightning.serving.protocol import Protocol


@contextmanager
def served(app: App) -> Iterator[tuple[str, int]]:
    """Its URL and port."""
    config = uvicorn.Config(
        app, http=Protocol, interface="asgi3", ws="none", lifespan="off", loop="asyncio", log_config=None
    )
    server, listener = uvicorn.Server(config), listening("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", port
    finally:
        server.should_exit = True
        thread.join(40)
        app.close()


def picture(kind: str = "PNG", side: int = 100, **save: Any) -> bytes:
    """A file with a four drawn in it."""
    image = Image.new("RGB", (side, side), "white")
    draw, unit = ImageDraw.Draw(image), side / 100
    for line in ([62, 20, 30, 60, 78, 60], [62, 20, 60, 85]):
        draw.line([unit * value for value in line], "black", round(8 * unit), joint="curve")
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()
