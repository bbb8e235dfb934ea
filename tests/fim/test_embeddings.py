"""The endpoint is a real HTTP server on this machine: bag-of-words vectors, and every way to fail that servers have."""

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from iqc.bm25 import words
from iqc.errors import IqcError, UsageError
from iqc.fim.embeddings import Embeddings, Endpoint
from iqc.fim.snippets import Snippets

SIZE = 1000


def vector(text):
    found = [0.0] * SIZE
    for word in words(text):
        found[int.from_bytes(word.encode()) % SIZE] += 1.0
    return found


def answer(texts):
    rows = [{"object": "embedding", "index": k, "embedding": vector(text)} for k, text in enumerate(texts)]
    return {"object": "list", "data": rows[::-1], "model": "bag"}  # in any order


@pytest.fixture
def server(monkeypatch):
    """A server whose `asked` are the requests, and which answers with the `planned` first: (status, headers, body)."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.asked.append((self.path, self.headers.get("Authorization"), body))
            status, headers, out = served.planned.popleft() if served.planned else (200, {}, answer(body["input"]))
            data = out if isinstance(out, bytes) else json.dumps(out).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.asked, served.planned = [], deque()
    served.url = f"http://127.0.0.1:{served.server_port}/v1"
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def test_vectors_are_of_unit_length_in_the_order_of_the_texts_whatever_the_batch(server):
    texts = [f"word{k} other" for k in range(10)]
    one, three = (Endpoint(server.url, "bag", batch=batch).embed(texts) for batch in (1, 3))
    assert one.shape == (10, SIZE) and np.array_equal(one, three)
    assert np.allclose(np.linalg.norm(one, axis=1), 1)
    assert len(server.asked) == 10 + 4
    path, key, body = server.asked[0]
    assert (path, key) == ("/v1/embeddings", None)
    assert body == {"model": "bag", "input": ["word0 other"], "encoding_format": "float"}


def test_the_key_is_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Endpoint(server.url + "/", "bag").embed(["a"])
    assert server.asked[0][:2] == ("/v1/embeddings", "Bearer secret")


def test_busy_and_broken_servers_are_asked_again(server):
    server.planned.extend([(429, {"Retry-After": "0"}, b"slow down"), (503, {}, b""), (500, {}, b"oops")])
    assert Endpoint(server.url, "bag", pause=0.01).embed(["a"]).shape == (1, SIZE)
    assert len(server.asked) == 4


def test_a_server_that_stays_broken_is_an_error_that_says_so(server):
    server.planned.extend([(503, {}, b"loading")] * 3)
    with pytest.raises(IqcError, match="503 Service Unavailable: loading, 3 times") as error:
        Endpoint(server.url, "bag", pause=0.01, tries=3).embed(["a"])
    assert error.value.where == server.url and error.value.remedy


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_final(server, status):
    server.planned.append((status, {}, b'{"error": "no such model"}'))
    with pytest.raises(IqcError, match="no such model"):
        Endpoint(server.url, "bag").embed(["a"])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        {"data": []},
        {"data": [{"index": 1, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": "text"}]},
        {"data": [{"index": 0, "embedding": [None]}]},
        {"data": [{"index": 0, "embedding": [[1.0]]}]},
        {"data": [{"index": 0}]},
        {"data": [{"index": 0, "embedding": [1e999]}]},
        {"data": [{"index": 0, "embedding": [1e300, 1e300]}]},
        {"data": [{"index": 0, "embedding": [0.0, 0.0]}]},
        {"data": [{"index": 0, "embedding": []}]},
        b"[" * 200_000,
        b" " * (1 << 21),
        [],
    ],
)
def test_an_answer_of_another_form_is_an_error(server, body):
    server.planned.append((200, {}, body))
    with pytest.raises(IqcError) as error:
        Endpoint(server.url, "bag").embed(["a"])
    assert error.value.remedy


def test_the_key_follows_no_redirect(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.planned.append((302, {"Location": server.url.replace("127.0.0.1", "localhost") + "/embeddings"}, b""))
    with pytest.raises(IqcError, match="302"):
        Endpoint(server.url, "bag").embed(["a"])
    assert len(server.asked) == 1


def test_an_answer_that_drips_has_a_time_limit():
    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(200):
            if handler.server.closing.wait(0.02):
                return
            handler.wfile.write(b" ")

    dripping = ThreadingHTTPServer(("127.0.0.1", 0), type("Drip", (BaseHTTPRequestHandler,), {"handle": drip}))
    dripping.closing = threading.Event()
    threading.Thread(target=dripping.serve_forever, args=(0.01,)).start()
    try:
        with pytest.raises(IqcError, match="no whole answer within"):
            url = f"http://127.0.0.1:{dripping.server_port}/v1"
            Endpoint(url, "bag", timeout=0.2, tries=1).embed(["a"])
    finally:
        dripping.closing.set()
        dripping.shutdown()
        dripping.server_close()


def test_no_server_and_no_address():
    with pytest.raises(IqcError, match="2 times"):
        Endpoint("http://127.0.0.1:9/v1", "bag", tries=2, pause=0.01, timeout=2).embed(["a"])
    with pytest.raises(UsageError):
        Endpoint("localhost:8000", "bag")


def test_a_server_that_does_not_answer_in_time(server):
    silent = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # accepts in its backlog, never reads
    try:
        with pytest.raises(IqcError, match="timed out, 2 times"):
            Endpoint(f"http://127.0.0.1:{silent.server_port}/v1", "bag", timeout=0.1, tries=2, pause=0.01).embed(["a"])
    finally:
        silent.server_close()


def test_vectors_of_other_lengths_are_refused(server):
    ranking = Embeddings(Endpoint(server.url, "bag"), ["a", "b"])
    server.planned.append((200, {}, {"data": [{"index": 0, "embedding": [1.0, 2.0]}]}))
    with pytest.raises(IqcError, match="several lengths"):
        ranking.scores("a")


def test_snippets_of_a_repository_are_embedded_once_and_ranked_by_cosine(server):
    texts = {
        "own.py": "red = 1\nblue = 2\n",
        "a.py": "green yellow red\n",
        "b.py": "blue red\n",
        "c.py": "purple pink\n",
    }
    files = [{"path": path, "text": text, "lang": "python"} for path, text in texts.items()]
    snippets = Snippets(files, lambda found: Embeddings(Endpoint(server.url, "bag", batch=100), found))
    for _ in range(2):
        found = snippets.similar(0, "red", " = 1\n", "blue = 2\n")
        assert [s["path"] for s in found][-2:] == ["a.py", "b.py"]
    assert [len(body["input"]) for _, _, body in server.asked] == [4, 1, 1]


def test_the_command_asks_the_endpoint(server, iqc, tmp_path):
    path = tmp_path / "in.jsonl"
    files = [{"path": f"{k}.py", "text": f"red_{k} = blue\nblue = {k}\n"} for k in range(3)]
    path.write_text(json.dumps({"id": "r", "repo": "r", "files": files}) + "\n")
    options = ["--rate", "1", "--similar", "embeddings", "--endpoint", server.url, "--embedding-model", "bag"]
    done = iqc("fim", path, "--plain", "-q", "-j", "1", *options)
    assert done.returncode == 0, done.stderr
    assert any(json.loads(line)["context"] for line in done.stdout.splitlines())
    assert {body["model"] for _, _, body in server.asked} == {"bag"}
    server.planned.append((401, {}, b"no key"))
    done = iqc("fim", path, "--plain", "-q", "-j", "2", *options)
    assert done.returncode == 1 and b"401" in done.stderr and b"OPENAI_API_KEY" in done.stderr
