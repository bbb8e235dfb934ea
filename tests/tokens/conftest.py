import argparse
import json.decoder
import pickle
import textwrap
from pathlib import Path

import numpy as np
import orjson
import pytest

from iqc.streams.lineage import Digest, Stage, lineage_of
from iqc.streams.output import shard_name
from iqc.streams.reader import MANIFEST
from iqc.tokens import tokenizer
from iqc.tokens.law.form import Law

SOURCES = [Path(module.__file__).read_text(encoding="utf-8") for module in (argparse, json.decoder, textwrap)]
SPANS = {"alpha_N": (0.2, 0.6), "alpha_D": (0.2, 0.6), "L_inf": (0.3, 1.2)}  # of a planted law


@pytest.fixture(scope="session")
def sources():
    """Some real source files that are wherever Python is."""
    return SOURCES


@pytest.fixture(scope="session")
def tok():
    return tokenizer.train(iter(SOURCES), 800)


@pytest.fixture(scope="session")
def slow(tok):
    """The same tokenizer, with the tokenizers library to encode."""
    other = pickle.loads(pickle.dumps(tok))
    other._fast = None
    return other


@pytest.fixture(scope="session")
def saved(tok, tmp_path_factory):
    """The directory of the saved tokenizer."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tok.save(directory, context=512)
    return directory


@pytest.fixture(scope="session")
def hf(saved):
    """The same tokenizer as Transformers loads it."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(saved)


@pytest.fixture(scope="session")
def write_shards(write_rows):
    """Write records to a directory of shards, so many in each, as `run_rolling` does."""

    def write(place, records, sizes):
        place.mkdir()
        digest, shards, done = Digest(), [], 0
        for number, size in enumerate(sizes):
            output = write_rows(place / shard_name(number), records[done : done + size])["output"]
            digest.add_digest(output["digest"])
            shards.append({"file": shard_name(number)} | output)
            done += size
        whole = {"digest": digest.text(), "records": done, "bytes": sum(shard["bytes"] for shard in shards)}
        made = lineage_of(Stage("pack", "1"), [], {"read": 0, "kept": done}, whole) | {"shards": shards}
        (place / MANIFEST).write_bytes(orjson.dumps(made))
        return place

    return write


@pytest.fixture(scope="session")
def make_law():
    """A law with random parameters of some languages; the same seed gives the same one."""
    return planted


def planted(*languages, seed=0):
    draw = np.random.default_rng(seed)
    count = len(languages)
    vectors = {name: draw.uniform(*span, count) for name, span in SPANS.items()}
    tau = draw.uniform(0, 0.4, (count, count)) * (1 - np.eye(count))
    return Law(tuple(languages), *draw.uniform(0.2, 0.6, 2), draw.uniform(0.5, 2), **vectors, tau=tau, N0=5e8, D0=1e10)
