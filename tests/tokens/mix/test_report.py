"""What the report shows of a mixture: every number of the summary once, shares that fill the picture."""

import html.parser
import re

import orjson
import pytest

from iqc.report import Findings, find, mixtures, page
from iqc.tokens.mix.report import is_mixture, pictures, rows_of


def lane(source, language, records, given, wanted):
    there, gave = ({"records": n, "amount": 10 * n, "bytes": 11 * n} for n in (records, given))
    share = {"wanted": wanted, "share": given / 100, "epochs": given / records}
    return {"source": source, "language": language, "band": ""} | {"there": there, "given": gave} | share


@pytest.fixture
def summary():
    lanes = [lane("a", "python", 50, 40, 0.41), lane("a", "*", 10, 20, 0.2), lane("<b>", "", 400, 40, 0.39)]
    marks = [[10 * mark, 5 * mark, 10 * mark] for mark in range(1, 41)]
    return {"command": "mix", "read": 460, "kept": 100, "mixture": {"by": "tokens", "lanes": lanes, "marks": marks}}


def test_a_row_for_every_part_and_the_whole(summary):
    assert rows_of(summary, "m") == [
        ("m", "a", "60", "60", "660", "600 tokens", "61.00%", "60.00%", "1"),
        ("", "- python", "50", "40", "440", "400 tokens", "41.00%", "40.00%", "0.8"),
        ("", "- others", "10", "20", "220", "200 tokens", "20.00%", "20.00%", "2"),
        ("m", "<b>", "400", "40", "440", "400 tokens", "39.00%", "40.00%", "0.1"),
        ("m", "all", "460", "100", "1,100", "1,000 tokens", "100.00%", "100.00%", "0.217"),
    ]


def test_shares_fill_every_column_of_a_picture(summary):
    svg = pictures(summary, "m")
    assert svg.count("<svg") == 2  # sources, languages
    sources = svg.partition("</svg>")[0]
    ends = [[float(y) for y in re.findall(r",([0-9.]+)", points)] for points in re.findall('points="([^"]*)"', sources)]
    bottom, top, steps = 178, 24, 40
    for column in range(2 * steps):
        assert ends[0][-1 - column] == bottom and ends[1][column] == top
        assert ends[0][column] == ends[1][-1 - column] == round(bottom - (bottom - top) * 0.6, 1)
    assert "&lt;b&gt; 40.0%" in sources and "<b>" not in sources


def test_the_report_has_table_and_picture(summary, tmp_path):
    (tmp_path / "m.json").write_bytes(orjson.dumps(summary))
    for number, broken in enumerate(({}, {"lanes": [{}], "marks": []}, {"by": "x", "lanes": "y", "marks": [1]})):
        (tmp_path / f"broken-{number}.json").write_bytes(orjson.dumps(summary | {"mixture": broken}))
        assert not is_mixture(summary | {"mixture": broken})
    found = find(str(tmp_path))
    assert mixtures(found) == rows_of(summary, "m")
    text = page(found, "x")
    assert text.count("<svg") == 2 and "61.00%" in text
    html.parser.HTMLParser().feed(text)
    assert "Mixtures" not in page(Findings(stages=[("s", {"read": 1, "kept": 1})]), "x")
