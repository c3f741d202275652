"""`serve` under load: requests a second and times of answers, beside the bare forward of the same network.

python benchmarks/serve.py --seconds 10                 1, 10 and 100 clients that each ask again at once
python benchmarks/serve.py --clients 200 --seconds 30   whether any request of 200 clients fails

The pictures are drawings as the page sends them; with --raw the 28x28 numbers, which need no preparation.
"""

import argparse
import asyncio
import io
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section

from mnist_lightning.data.photo import prepare
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.predictor import Predictor


def drawings(raw: bool) -> list[tuple[bytes, str]]:
    """Bodies of requests and their kinds: black on white, 168 pixels a side, as the page's canvas."""
    bodies = []
    for digit in synthetic_digits(50, seed=1)[0]:
        file = io.BytesIO()
        large = Image.fromarray(255 - digit.numpy()).resize((140, 140), Image.Resampling.LANCZOS)
        paper = Image.new("L", (168, 168), 255)
        paper.paste(large, (14, 14))
        paper.save(file, "PNG")
        body = (
            (json.dumps({"image": digit.tolist()}).encode(), "application/json")
            if raw
            else (file.getvalue(), "image/png")
        )
        bodies.append(body)
    return bodies


async def client(port: int, bodies: list[tuple[bytes, str]], until: float, number: int) -> tuple[list[float], int]:
    """Seconds of each answer on one connection, and how many were none. No library's: most take longer to ask."""
    times, failed = [], 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        content, kind = bodies[(number + len(times)) % len(bodies)]
        lines = [
            "POST /predict HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {kind}",
            f"Content-Length: {len(content)}",
        ]
        start = time.perf_counter()
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        try:
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))
            failed += not answer.startswith(b"HTTP/1.1 200")
        except (OSError, EOFError, TimeoutError):
            failed += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        times.append(time.perf_counter() - start)
    writer.close()
    return times, failed


def ask(port: int, raw: bool, clients: int, seconds: float) -> None:
    """Prints what these clients saw, as JSON: in a process of their own."""
    bodies = drawings(raw)

    async def all_clients() -> list[tuple[list[float], int]]:
        until = time.perf_counter() + seconds
        return await asyncio.gather(*(client(port, bodies, until, number) for number in range(clients)))

    start = time.perf_counter()
    results = asyncio.run(all_clients())
    took = time.perf_counter() - start
    times = sorted(second for some, _ in results for second in some)
    print(json.dumps({
        "rate": len(times) / took, "p50": 1000 * statistics.median(times), "p99": 1000 * times[int(0.99 * len(times))],
        "requests": len(times), "failed": sum(failed for _, failed in results),
    }))  # fmt: skip


def bare(weights: str | None) -> list[str]:
    """The network alone, and the preparation of a picture alone, in this process."""
    predictor, lines = Predictor(weights), []
    for images in (1, 10, 100):
        batch = torch.stack([*synthetic_digits(images, seed=2)[0]])
        calls = []
        for _ in range(50):
            start = time.perf_counter()
            predictor(batch)
            calls.append(time.perf_counter() - start)
        lines.append(f"| bare forward of {images} | {images / statistics.median(calls):,.0f} images | "
                     f"{1000 * statistics.median(calls):.2f} | {1000 * max(calls):.2f} | |")  # fmt: skip
    calls = []
    for content, _ in drawings(raw=False):
        start = time.perf_counter()
        prepare(Image.open(io.BytesIO(content)))
        calls.append(time.perf_counter() - start)
    lines.append(f"| decoding and preparing one drawing | {1 / statistics.median(calls):,.0f} | "
                 f"{1000 * statistics.median(calls):.2f} | {1000 * max(calls):.2f} | |")  # fmt: skip
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--ckpt_path", default="pretrained")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(options.ask, options.raw, options.clients[0], options.seconds)
        raise SystemExit
    lines = ["| | a second | p50, ms | p99, ms | requests, failed |", "| --- | --- | --- | --- | --- |"]
    command = [sys.executable, "-m", "mnist_lightning", "serve", "--port", "0", "--ckpt_path", options.ckpt_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        port = re.search(r"http://\S+:(\d+)", server.stdout.readline())[1]
        for clients in options.clients:
            words = ["--ask", port, "--clients", str(clients), "--seconds", str(options.seconds)]
            words += ["--raw"] if options.raw else []
            told = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True).stdout
            found = json.loads(told)
            lines.append(f"| {clients} clients | {found['rate']:,.0f} | {found['p50']:.1f} | {found['p99']:.1f} | "
                         f"{found['requests']:,}, {found['failed']} |")  # fmt: skip
            print(lines[-1], flush=True)
        server.terminate()
    lines += [*bare(None if options.ckpt_path == "pretrained" else options.ckpt_path)]
    lines += ["", f"{options.seconds:g} s each, clients in one process of their own. {machine()}"]
    print("\n".join(lines))
    if options.write:
        called = f"`python benchmarks/serve.py --seconds {options.seconds:g}{' --raw' if options.raw else ''} --write`"
        write_section("Serving", [called, "", *lines])
