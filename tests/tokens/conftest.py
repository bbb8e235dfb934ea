import argparse
import json.decoder
import pickle
import textwrap
from pathlib import Path

import pytest

from iqc.tokens import tokenizer

SOURCES = [Path(module.__file__).read_text(encoding="utf-8") for module in (argparse, json.decoder, textwrap)]


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
