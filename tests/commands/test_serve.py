"""`serve`: what is said before it starts, where it is, how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served import picture

import mnist_lightning
from mnist_lightning.commands.serve import listening


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command in a process of its own, with the shipped weights: the process and its URL."""
    command = [sys.executable, "-m", "mnist_lightning", "serve", "--port", "0", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(mnist_lightning.__file__).parents[1])}
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            line = process.stdout.readline()
            yield process, re.search(r"http://\S+", line)[0]
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--port", "http"], 2, "--port is http"),
        (["--port", "65536"], 2, "--port is 65536"),
        (["--prot", "1"], 2, "did you mean --port?"),
        (["--host", "0.0.0.0", "--port", "0"], 2, "--token"),
        (["--host", "no.such.name.invalid"], 2, "--host no.such.name.invalid"),
        (["--host", "203.0.113.7"], 2, "no address of this machine"),
        (["--token", " a"], 2, "--token takes"),
        (["--port", "0", "--run", "nobody"], 1, "there is no run 'nobody'"),
        (["--port", "0", "--ckpt_path", "pretrained", "--collect", "file"], 1, "file cannot be written"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(cli, tmp_path, words, status, told):
    (tmp_path / "file").write_text("")
    result = cli("serve", *words)
    assert result.status == status
    assert told in result.err
    assert "Traceback" not in result.err


def test_a_port_in_use_is_named_and_another_proposed(cli):
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = cli("serve", "--port", port)
    assert result.status == 1
    assert result.err == (
        f"mnist_lightning: port {port} of 127.0.0.1 is in use: give another --port; 0 takes any that is free\n"
    )


def test_a_missing_extra_is_named_with_the_command_that_brings_it(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = cli("serve", "--port", "0")
    assert result.status == 1
    assert result.err.endswith("pip install 'mnist-lightning[serve]'\n")


def test_help_needs_nothing(cli):
    result = cli("serve", "--help")
    assert result.status == 0
    assert "--collect FOLDER" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_answers_what_is_under_way_and_ends_well(tmp_path, signum):
    with serving(tmp_path, "--ckpt_path", "pretrained") as (process, url):
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        content = picture()
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.settimeout(20)
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            client.sendall(head.encode() + content[:50])
            time.sleep(0.5)
            process.send_signal(signum)
            time.sleep(1)
            client.sendall(content[50:])
            answer = b""
            while piece := client.recv(4096):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"word":"four"' in answer
        out, err = process.communicate(timeout=40)
        assert process.returncode == 0
        assert out.splitlines()[-1] == "stopped; 2 requests were answered"
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_second_request_to_stop_waits_for_nobody(tmp_path):
    with serving(tmp_path, "--ckpt_path", "pretrained") as (process, url), socket.socket() as client:
        client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.slow
def test_it_serves_in_a_thread_beside_others_and_gives_back_what_it_took(cli, tmp_path, monkeypatch):
    """As in a notebook, whose own loop runs on."""
    import torch

    from mnist_lightning.commands import serve

    servers, threads = [], torch.get_num_threads()
    until_stopped = serve._until_stopped

    def noted(server, listener):
        servers.append(server)
        until_stopped(server, listener)

    monkeypatch.setattr(serve, "_until_stopped", noted)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    results = []
    thread = threading.Thread(target=lambda: results.append(cli("serve", "--port", "0", "--ckpt_path", "pretrained")))
    thread.start()
    for _ in range(600):
        if servers and servers[0].started:
            break
        time.sleep(0.1)
    servers[0].should_exit = True
    thread.join(20)
    assert results[0].status == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert torch.get_num_threads() == threads
