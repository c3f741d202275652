"""The server as programs meet it: through sockets."""

import base64
import io
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from served import picture, served

from mnist_lightning.data.photo import prepare
from mnist_lightning.serving.app import App
from mnist_lightning.serving.collection import Collection
from mnist_lightning.serving.guard import Limits

# A context for TLS, which httpx.get makes anew for each call, takes longer than an answer.
CLIENT = httpx.Client(verify=False, timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
ANSWER = {"status", "digit", "name", "number", "word", "confidence", "runner_up", "probabilities", "seen"}


def as_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def pixels(file: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(file))))


def seen_in(answer: dict) -> torch.Tensor:
    return pixels(base64.b64decode(answer["seen"][0].partition(",")[2]))


# ---------------------------------------------------------------------- pictures and answers


def test_a_picture_is_read_alike_however_it_is_sent(url, predictor):
    content = picture()
    answers = [
        CLIENT.post(f"{url}/predict", content=content),
        CLIENT.post(f"{url}/predict", content=content, headers={"Content-Type": "application/x-www-form-urlencoded"}),
        CLIENT.post(f"{url}/predict", files={"image": ("four.png", content, "image/png")}),
        CLIENT.post(f"{url}/predict", json={"image": as_url(content)}),
        CLIENT.post(f"{url}/predict", json={"image": base64.b64encode(content).decode()}),
    ]
    answers += [CLIENT.post(f"{url}/predict/batch", files=[("f", ("a", content)), ("f", ("b", content))])]
    answers += [CLIENT.post(f"{url}/predict/batch", json=[as_url(content)])]
    answers += [CLIENT.post(f"{url}/predict/batch", json={"images": [as_url(content)] * 3})]
    assert [answer.status_code for answer in answers] == [200] * 8
    single = [answer.json() for answer in answers[:5]]
    batches = [answer.json()["answers"] for answer in answers[5:]]
    assert [len(batch) for batch in batches] == [2, 1, 3]
    assert all(answer == single[0] for answer in [*single, *chain(*batches)])
    assert single[0].keys() == ANSWER

    image = prepare(Image.open(io.BytesIO(content))).image
    row = predictor(image[None])[0]
    assert torch.equal(seen_in(single[0]), image)
    assert single[0]["probabilities"] == {
        str(digit): pytest.approx(p, abs=2e-6) for digit, p in enumerate(row.tolist())
    }
    assert single[0]["confidence"] == pytest.approx(row.max().item(), abs=2e-6)
    assert single[0]["runner_up"] == str(int(row.argsort()[-2]))


def test_raw_numbers_go_to_the_network_as_they_are(url, predictor):
    image = torch.arange(784).remainder(256).to(torch.uint8).view(28, 28)
    answer = CLIENT.post(f"{url}/predict", json={"image": image.tolist()}).json()
    assert torch.equal(seen_in(answer), image)
    assert list(answer["probabilities"].values()) == pytest.approx(predictor(image[None])[0].tolist(), abs=2e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_usual_kind_of_file_is_read(url, kind):
    answer = CLIENT.post(f"{url}/predict", content=picture(kind))
    assert answer.status_code == 200
    assert len(answer.json()["seen"]) == 1


def test_a_blank_picture_is_told_as_such(url):
    file = io.BytesIO()
    Image.new("L", (200, 200), 255).save(file, "PNG")
    for content in ({"content": file.getvalue()}, {"json": {"image": [[0] * 28] * 28}}):
        answer = CLIENT.post(f"{url}/predict", **content).json()
        assert (answer["status"], answer["digit"], answer["probabilities"], answer["seen"]) == ("blank", None, None, [])


# ---------------------------------------------------------------------- what is refused


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    ((key, line),) = answer.json().items()
    assert key == "error"
    assert "\n" not in line
    assert not re.search(r"Traceback|File \"|/\w+/\w+/|\.py\b|\w+Error", line)
    return answer.status_code, line


PNG = picture()
BOMB = bytearray(PNG)
BOMB[16:24] = (60000).to_bytes(4, "big") * 2
MALFORMED = [
    (400, {"content": b""}),
    (422, {"content": b"no picture"}),
    (422, {"content": PNG[:200]}),
    (422, {"content": bytes(BOMB)}),
    (422, {"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"}),
    (400, {"files": {"image": ("", b"")}}),
    (400, {"data": {"image": "a"}, "headers": {"Content-Type": "multipart/form-data"}}),
    (400, {"content": b"--b\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}),
    (400, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
    (400, {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}),
    (400, {"content": b'{"image": NaN}', "headers": {"Content-Type": "application/json"}}),
    (400, {"content": b'"\xff"', "headers": {"Content-Type": "application/json"}}),
    (400, {"json": None}),
    (400, {"json": {}}),
    (400, {"json": []}),
    (400, {"json": {"image": None}}),
    (400, {"json": {"image": "no base64!"}}),
    (422, {"json": {"image": ""}}),
    (400, {"json": {"image": "http://example.com/a.png"}}),
    (400, {"json": {"image": "data:image/png,a"}}),
    (422, {"json": {"image": as_url(b"no picture")}}),
    (400, {"json": {"image": [[0] * 28] * 27}}),
    (400, {"json": {"image": [[0] * 27] * 28}}),
    (400, {"json": {"image": [[256] * 28] * 28}}),
    (400, {"json": {"image": [[0.5] * 28] * 28}}),
    (400, {"json": {"image": [[True] * 28] * 28}}),
    (400, {"json": {"image": [["1"] * 28] * 28}}),
    (400, {"json": {"image": [[0] * 28] * 28, "images": []}}),
    (400, {"json": [as_url(PNG), as_url(PNG)]}),
    (413, {"json": [""] * 1001}),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_what_is_malformed_is_refused_in_a_line(url, number):
    status, request = MALFORMED[number]
    assert refused(CLIENT.post(f"{url}/predict", **request))[0] == status


def test_a_batch_with_a_damaged_picture_says_which(url):
    answer = CLIENT.post(f"{url}/predict/batch", files=[("f", ("a", PNG)), ("f", ("b", PNG[:99]))])
    assert refused(answer) == (422, "image 2 is damaged: it cannot be decoded")


def test_paths_and_methods_that_are_not_there(url):
    assert refused(CLIENT.get(f"{url}/../../etc/passwd"))[0] == 404
    assert refused(CLIENT.post(f"{url}/predict/", content=PNG))[0] == 404
    assert refused(CLIENT.get(f"{url}/predict"))[0] == 405
    assert refused(CLIENT.put(f"{url}/predict", content=PNG))[0] == 405


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(url):
    body = b"a" * (20 * 2**20 + 1)
    pieces = (body[start : start + 2**20] for start in range(0, len(body), 2**20))
    for content in (body, pieces):
        assert refused(CLIENT.post(f"{url}/predict", content=content, timeout=30))[0] == 413
    assert CLIENT.get(f"{url}/health").status_code == 200


def test_a_page_elsewhere_can_neither_be_this_server_nor_ask_it(url):
    assert refused(CLIENT.get(url, headers={"Host": "evil.example"}))[0] == 421
    assert refused(CLIENT.get(url, headers={"Host": "[::bad"}))[0] == 421
    port = url.rpartition(":")[2]
    assert CLIENT.get(url, headers={"Host": f"localhost:{port}"}).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert refused(CLIENT.post(f"{url}/predict", content=PNG, headers=headers))[0] == 403
    assert CLIENT.post(f"{url}/predict", content=PNG, headers={"Origin": url}).status_code == 200


def test_a_token_is_asked_of_those_who_want_answers(predictor):
    with served(App(predictor, token="open", hosts=None)) as (url, _):
        for path in ("/", "/health", "/openapi.json"):
            assert CLIENT.get(url + path, headers={"Host": "digits.example"}).status_code == 200
        for wrong in (
            {},
            {"Authorization": "Bearer ope"},
            {"Authorization": "Basic open"},
            {"Authorization": b"Bearer \xe9"},
        ):
            answer = CLIENT.post(f"{url}/predict", content=PNG, headers=wrong)
            assert refused(answer)[0] == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert CLIENT.get(f"{url}/metrics", headers=wrong).status_code == 401
        right = {"Authorization": "Bearer open"}
        assert CLIENT.post(f"{url}/predict", content=PNG, headers=right).status_code == 200


def test_more_requests_than_are_taken_are_told_to_come_back(predictor):
    slow = Limits(requests=1, body_seconds=5)
    with served(App(predictor, limits=slow)) as (url, port), socket.create_connection(("127.0.0.1", port)) as first:
        first.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.3)
        answer = CLIENT.get(f"{url}/health")
        assert refused(answer)[0] == 503
        assert answer.headers["retry-after"] == "1"
        first.sendall(b"a picture")
        assert first.recv(20).startswith(b"HTTP/1.1 422")
        assert CLIENT.get(f"{url}/health").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(predictor):
    app = App(predictor, limits=Limits(body_seconds=0.3))
    with served(app) as (_, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(10)
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\na")
        assert client.recv(20).startswith(b"HTTP/1.1 408")


def test_a_head_that_does_not_come_is_not_waited_for(url, monkeypatch):
    monkeypatch.setattr("mnist_lightning.serving.protocol.HEAD_SECONDS", 0.3)
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as slow, socket.create_connection(("127.0.0.1", port)) as silent:
        slow.settimeout(10)
        silent.settimeout(10)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert slow.recv(20).startswith(b"HTTP/1.1 408")
        assert silent.recv(20) == b""


def test_what_is_no_http_is_told_so_in_json(url):
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.settimeout(10)
        client.sendall(b"\x16\x03\x01 garbage\r\n\r\n" + b"a" * 200_000)
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "this is no HTTP request"}


def test_what_goes_wrong_inside_is_told_without_its_traceback(predictor, monkeypatch, caplog):
    app = App(predictor)

    def fail(images):
        raise RuntimeError("/secret/path")

    with served(app) as (url, _):
        monkeypatch.setattr(predictor, "logits", fail)
        assert refused(CLIENT.post(f"{url}/predict", content=PNG)) == (500, "the server failed: its log says how")
        monkeypatch.undo()
        assert CLIENT.post(f"{url}/predict", content=PNG).status_code == 200
    assert "/secret/path" in caplog.text


# ---------------------------------------------------------------------- corrections


def test_a_correction_is_saved_as_the_network_saw_it_and_goes_over_to_another_label(url, collected: Path):
    content = picture(side=60)
    body = {"image": as_url(content), "label": "4"}
    assert CLIENT.post(f"{url}/collect", json=body).json() == {"label": "4", "count": 1}
    assert CLIENT.post(f"{url}/collect", json=body).json() == {"label": "4", "count": 1}
    (file,) = collected.glob("*/*")
    assert file.parent.name == "4"
    image = pixels(file.read_bytes())
    assert torch.equal(image, prepare(Image.open(io.BytesIO(content))).image)
    assert image[0].max() == 0  # the ground is black, as MNIST's
    assert CLIENT.post(f"{url}/collect", json=body | {"label": "9"}).json() == {"label": "9", "count": 1}
    assert [path.parent.name for path in collected.glob("*/*")] == ["9"]


def test_a_correction_that_cannot_be_saved_is_refused(url, collected: Path):
    before = sorted(collected.rglob("*"))
    body = {"image": as_url(PNG), "label": "4"}
    for status, request in (
        (415, {"content": json.dumps(body), "headers": {"Content-Type": "text/plain"}}),
        (403, {"json": body, "headers": {"Origin": "http://evil.example"}}),
        (422, {"json": body | {"label": "../../x"}}),
        (422, {"json": body | {"label": ""}}),
        (400, {"json": body | {"label": 4}}),
        (400, {"json": {"image": body["image"]}}),
        (400, {"json": [body]}),
        (422, {"json": body | {"image": [[0] * 28] * 28}}),
    ):
        assert refused(CLIENT.post(f"{url}/collect", **request))[0] == status
    assert sorted(collected.rglob("*")) == before


def test_corrections_have_an_end_and_a_full_disk_is_told(predictor, tmp_path, monkeypatch):
    collection = Collection(tmp_path, predictor.names)
    with served(App(predictor, collection=collection)) as (url, _):
        body = {"image": as_url(PNG), "label": "4"}
        monkeypatch.setattr("mnist_lightning.serving.collection.MOST", 0)
        assert refused(CLIENT.post(f"{url}/collect", json=body))[0] == 507
        monkeypatch.undo()
        monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert refused(CLIENT.post(f"{url}/collect", json=body))[0] == 507
        monkeypatch.undo()
        assert not list(tmp_path.glob("4/*"))
        assert CLIENT.post(f"{url}/collect", json=body).json()["count"] == 1
    assert Collection(tmp_path, predictor.names).count == 1


def test_nothing_is_saved_where_nobody_asked_for_it(predictor):
    with served(App(predictor)) as (url, _):
        assert CLIENT.get(f"{url}/health").json()["collects"] is False
        assert refused(CLIENT.post(f"{url}/collect", json={"image": as_url(PNG), "label": "4"}))[0] == 404


# ---------------------------------------------------------------------- the rest


def test_the_page_may_run_its_own_scripts_and_nothing_else(url):
    answer = CLIENT.get(url)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"""\son\w+=|\sstyle=|(src|href)=["']?(https?:)?//""", answer.text)


def test_metrics_count_what_was_done(predictor):
    with served(App(predictor)) as (url, _):
        for _ in range(3):
            CLIENT.post(f"{url}/predict", content=PNG)
        CLIENT.post(f"{url}/predict/batch", files=[("f", ("a", PNG))] * 5)
        CLIENT.get(f"{url}/a/path/of/somebody")
        text = CLIENT.get(f"{url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['mnist_lightning_requests_total{path="/predict",status="200"}'] == "3"
    assert values['mnist_lightning_requests_total{path="other",status="404"}'] == "1"
    assert values["mnist_lightning_requests_in_flight"] == "1"
    assert values["mnist_lightning_batch_images_sum"] == "8.000000"
    assert values['mnist_lightning_batch_images_bucket{le="1"}'] == "3"
    assert (
        values["mnist_lightning_batch_images_count"] == values['mnist_lightning_batch_images_bucket{le="+Inf"}'] == "4"
    )
    assert values["mnist_lightning_request_seconds_count"] == "5"


def test_the_description_says_what_is_there(url):
    document = CLIENT.get(f"{url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["paths"].keys() == {
        "/",
        "/predict",
        "/predict/batch",
        "/health",
        "/metrics",
        "/openapi.json",
        "/collect",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert CLIENT.request(method, url + path).status_code in map(int, operation["responses"])
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references == document["components"]["schemas"].keys()
    assert set(document["components"]["schemas"]["Answer"]["properties"]) == ANSWER


@pytest.mark.slow
def test_two_hundred_clients_at_the_same_time_are_all_answered(url):
    files = [picture(side=side) for side in range(60, 100, 4)]

    def client(number: int) -> list[int]:
        statuses = []
        with httpx.Client(verify=False, timeout=60) as session:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                statuses.append(session.post(f"{url}/predict", content=files[number % len(files)]).status_code)
        return statuses

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(client, range(200)))
    assert all(statuses)
    assert {status for one in statuses for status in one} == {200}


@pytest.mark.slow
def test_a_thousand_malformed_requests_get_a_4xx_each_and_the_server_goes_on(url):
    generator = torch.Generator().manual_seed(7)

    def number(most: int) -> int:
        return int(torch.randint(most, (1,), generator=generator))

    with httpx.Client(timeout=30) as client:
        for turn in range(1000):
            status, request = MALFORMED[number(len(MALFORMED))]
            if turn % 3 == 0:  # bytes of a picture are lost: whatever Pillow makes of them
                cut = PNG[: number(len(PNG) - 60)]
                status, request = 422 if cut else 400, {"content": cut}
            path = (
                ("/predict", "/predict/batch")[number(2)] if "files" in request or "content" in request else "/predict"
            )
            assert refused(client.post(url + path, **request))[0] == status, (turn, request)
    assert CLIENT.post(f"{url}/predict", content=PNG).status_code == 200
