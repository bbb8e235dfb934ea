"""What the tests of samples share: a document, the samples made of a text, and the relations that all samples keep."""

import re
from collections.abc import Callable

import pytest

from iqc.fim.layout import LAYOUTS, neutralise
from iqc.fim.samples import FillInTheMiddle
from iqc.tokens.render import render
from iqc.tokens.special import CONTROL

TOKEN = re.compile("|".join(map(re.escape, CONTROL)))


@pytest.fixture(scope="session")
def document() -> Callable[..., dict]:
    return lambda text, name="d", **metadata: {"id": name, "text": text, "source": "test", "metadata": metadata}


@pytest.fixture(scope="session")
def made(document) -> Callable[..., list]:
    """Everything that becomes of a text of which every document is drawn."""

    def make(text: str, name: str = "d", lang: str = "python", **options) -> list:
        return list(FillInTheMiddle(rate=1, **options).transform(document(text, name, lang=lang)))

    return make


@pytest.fixture(scope="session")
def check() -> Callable[[dict, str], None]:
    """The parts rebuild the source; the text is what `pack` renders, of the neutralised strings."""

    def relations(sample: dict, source: str) -> None:
        assert sample["prefix"] + sample["middle"] + sample["suffix"] == source
        assert sample["middle"].strip()
        segments = render(sample).segments
        assert sample["text"] == "".join(s.value if s.is_control else neutralise(s.value)[0] for s in segments)
        assert "".join(s.value for s in segments).endswith(
            LAYOUTS[sample["layout"]].format(**{part: sample[part] for part in ("prefix", "middle", "suffix")})
        )
        assert TOKEN.findall(sample["text"]) == [s.value for s in segments if s.is_control]
        named = sum(len(TOKEN.findall(s.value)) for s in segments if not s.is_control)
        assert sample["metadata"].get("fim_neutralised", 0) == named

    return relations
