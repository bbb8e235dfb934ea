"""Snippets ranked by the cosine of their embeddings, which an OpenAI-compatible endpoint makes: POST /v1/embeddings.

What comes back depends on the endpoint: the same input and seed give the same samples only as long as the same model
answers there with the same numbers.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np
from numpy.typing import NDArray

from iqc.errors import IqcError, UsageError

KEY = "OPENAI_API_KEY"  # environment variable, sent as the bearer token; many local servers want none
_AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
_ANSWER = 1 << 20  # bytes of an answer for each text, at most: 16,000 dimensions take 350 KB as JSON


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is an error: it would carry the key to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = build_opener(_NoRedirects)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`url` is the API's base, such as `http://localhost:8000/v1`. `timeout` (of a whole answer), `pause`: seconds."""

    url: str
    model: str
    batch: int = 64  # texts in a request
    timeout: float = 60.0
    tries: int = 6
    pause: float = 1.0  # before the second try, and twice as long before each further one

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"the endpoint is {self.url!r}", remedy="give its base, as in http://localhost:8000/v1")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, dimensions] of unit length. IqcError when the endpoint refuses, stays away or answers otherwise."""
        parts = [self._ask(texts[start : start + self.batch]) for start in range(0, len(texts), self.batch)]
        if len({part.shape[1] for part in parts}) != 1:
            raise self._error("vectors of several lengths", "name one model that makes embeddings")
        return np.concatenate(parts)

    def _ask(self, texts: Sequence[str]) -> NDArray[np.float32]:
        body = json.dumps({"model": self.model, "input": list(texts), "encoding_format": "float"}).encode()
        answer = self._post(body, len(texts) * _ANSWER)
        try:
            rows = sorted(json.loads(answer)["data"], key=lambda row: row["index"])
            found = np.array([row["embedding"] for row in rows], np.float64)
            numbered = [row["index"] for row in rows] == list(range(len(texts)))
            with np.errstate(over="ignore"):
                lengths = np.linalg.norm(found, axis=1, keepdims=True)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._error(f"no embeddings: {error!r}", "it must answer as OpenAI's /v1/embeddings does") from None
        if not numbered or found.ndim != 2 or not np.isfinite(lengths).all() or not lengths.all():
            raise self._error(
                f"{len(rows)} embeddings of shape {found.shape[1:]} for {len(texts)} texts",
                "it must answer with one vector of finite numbers a text, not all of them 0",
            )
        return (found / lengths).astype(np.float32)

    def _post(self, body: bytes, limit: int) -> bytes:
        """The answer, asked for again while the server is busy, broken or away."""
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = Request(self.url.rstrip("/") + "/embeddings", body, headers)
        pause = self.pause
        for left in reversed(range(self.tries)):
            asked = None
            try:
                with _OPENER.open(request, timeout=self.timeout) as response:
                    return self._read(response, limit)
            except HTTPError as error:
                what = f"{error.code} {error.reason}: {error.read(300).decode(errors='replace').strip()}"
                if error.code not in _AGAIN:
                    raise self._error(what, f"look at --endpoint, --embedding-model and {KEY}") from None
                asked = error.headers.get("Retry-After")
            except (URLError, HTTPException, OSError) as error:
                what = str(getattr(error, "reason", error)) or type(error).__name__
            if left:
                time.sleep(min(float(asked) if asked and asked.isdecimal() else pause, _LONGEST_WAIT))
                pause *= 2
        raise self._error(f"{what}, {self.tries} times", "start it, or ask it for less at once with --jobs 1")

    def _read(self, response: HTTPResponse, limit: int) -> bytes:
        """The body within the time and the limit, in bytes; the socket's own timeout is for each of its pieces."""
        end, answer = time.monotonic() + self.timeout, bytearray()
        while piece := response.read1(1 << 16):
            answer += piece
            if len(answer) > limit:
                raise self._error(f"an answer of more than {limit} bytes", "ask for vectors of fewer dimensions")
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {self.timeout:g} s")
        return bytes(answer)

    def _error(self, what: str, remedy: str) -> IqcError:
        return IqcError(what, where=self.url, remedy=remedy)


class Embeddings:
    """A ranking (iqc.fim.ranking.Ranking) by cosine; each text is sent once, and each query."""

    def __init__(self, endpoint: Endpoint, texts: Sequence[str]):
        self._endpoint = endpoint
        self._vectors = endpoint.embed(texts)

    def scores(self, query: str) -> NDArray[np.float32]:
        vector = self._endpoint.embed([query])[0]
        if len(vector) != self._vectors.shape[1]:
            raise IqcError("vectors of several lengths", where=self._endpoint.url, remedy="name one embedding model")
        return self._vectors @ vector
