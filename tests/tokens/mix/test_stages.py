"""`mix` over files: all records of an epoch, shares at every place, the same bytes for any jobs and after a kill."""

import gzip
import json
import random
from collections import Counter
from itertools import pairwise

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.streams.container import read_index
from iqc.streams.reader import lineage_at
from iqc.streams.runner import Settings, StreamInput, read_records
from iqc.tokens.mix import lanes
from iqc.tokens.mix import stages as mix_stages
from iqc.tokens.mix.recipe import Difficulty, Phase, Recipe, Wish
from iqc.tokens.sequence import decode_sequence

LANGUAGES = ("python", "rust", "go", None)


def documents(name, count, seed=0):
    """Records of very different sizes, with a language or none and a score or none."""
    draw = random.Random(f"{name}{seed}")
    for number in range(count):
        lang = draw.choice(LANGUAGES)
        metadata = {"lang": lang} if lang else {}
        metadata |= {"score": draw.random()} if number % 7 else {}
        yield {"id": f"{name}-{number}", "text": "x" * int(draw.lognormvariate(4, 1.5)), "metadata": metadata}


@pytest.fixture(scope="module")
def world(make_stream, tmp_path_factory):
    place = tmp_path_factory.mktemp("world")
    for name, count, per_frame in (("a", 400, 37), ("b", 150, 150), ("c", 40, 7)):
        make_stream(place / f"{name}.zst", documents(name, count), per_frame)
    make_stream(place / "empty.zst", [])
    return place


@pytest.fixture
def mixed(world, tmp_path):
    """Mix the world's sources by a recipe: (records in their order, counts)."""

    def run(recipe, *, seed=0, shuffle=True, jobs=1, paths=None, tokenizer=None, **options):
        paths = paths or {name: str(world / f"{name}.zst") for name in recipe.wishes}
        target = tmp_path / "out.zst"
        how = Settings(output=str(target), jobs=jobs, quiet=True, **options)
        counts = mix_stages.mix(paths, recipe, tokenizer, how, seed, shuffle)
        return list(read_records(StreamInput([str(target)]))), counts

    return run


def source_of(record):
    return record["id"].partition("-")[0]


def size_of(record):
    return len(orjson.dumps(record)) + 1


def test_once_everything_is_a_permutation_spread_evenly(mixed):
    records, counts = mixed(Recipe({"a": Wish(), "b": Wish(), "c": Wish()}))
    wanted = [record for name, count in (("a", 400), ("b", 150), ("c", 40)) for record in documents(name, count)]
    assert sorted(map(orjson.dumps, records)) == sorted(map(orjson.dumps, wanted))
    sizes = {name: sum(size_of(record) for record in wanted if source_of(record) == name) for name in "abc"}
    largest, done = max(map(size_of, wanted)), Counter()
    for record in records:
        done[source_of(record)] += size_of(record)
        for name, size in sizes.items():
            assert abs(done[name] - size * done.total() / sum(sizes.values())) <= largest
    assert counts.read == counts.kept == 590


def test_the_order_depends_on_the_seed_and_is_none_without_shuffling(mixed):
    recipe = Recipe({"a": Wish()})
    one, other, again = (mixed(recipe, seed=seed)[0] for seed in (1, 2, 1))
    assert one == again != other
    assert mixed(recipe, shuffle=False)[0] == list(documents("a", 400))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.integers(1, 4), st.floats(0.3, 3.7)), st.sampled_from(["records", "bytes"]), st.integers(0, 99))
def test_every_epoch_is_a_permutation_and_repeats_are_named(mixed, epochs, by, seed):
    records, _ = mixed(Recipe({"c": Wish(epochs=epochs), "b": Wish(epochs=1)}, by=by), seed=seed)
    own = [record for record in records if source_of(record) == "c"]
    found = Counter(record["id"].partition("#epoch")[::2] for record in own)
    assert set(found.values()) == {1}
    for epoch in range(1, int(epochs) + 1):
        assert sum(number == ("" if epoch == 1 else str(epoch)) for _, number in found) == 40
    size = size_of if by == "bytes" else lambda record: 1
    whole = sum(map(size, documents("c", 40)))
    amounts = [size(record | {"id": record["id"].partition("#")[0]}) for record in own]
    assert abs(sum(amounts) - epochs * whole) <= (0 if epochs == int(epochs) else max(amounts))
    assert sum(source_of(record) == "b" for record in records) == 150


@pytest.mark.parametrize("by", ["records", "bytes"])
def test_weights_end_where_the_first_source_is_used_up(mixed, by):
    records, counts = mixed(Recipe({"a": Wish(1), "b": Wish(1), "c": Wish(2), "empty": Wish(0)}, by=by))
    found = {row["source"]: row for row in counts.extra["mixture"]["lanes"]}
    largest = 1 if by == "records" else max(map(size_of, records))
    left = min(row["there"]["amount"] - row["given"]["amount"] for row in found.values())
    assert left == 0
    for name, share in (("a", 0.25), ("b", 0.25), ("c", 0.5)):
        whole = sum(row["given"]["amount"] for row in found.values())
        assert abs(found[name]["given"]["amount"] - share * whole) <= largest


def test_a_source_is_not_repeated_unasked(mixed):
    recipe = Recipe({"a": Wish(1), "c": Wish(1)}, by="records", total=200)
    with pytest.raises(IqcError, match=r"2\.50 epochs"):
        mixed(recipe)
    recipe.max_epochs = 2.5
    assert len(mixed(recipe)[0]) == 200
    recipe.max_epochs, recipe.short = 1, "rescale"
    found = Counter(source_of(record) for record in mixed(recipe)[0])
    assert found == {"a": 160, "c": 40}


def test_replay_is_the_same_share_everywhere(mixed):
    recipe = Recipe({"a": Wish(epochs=1), "b": Wish(replay=0.1)}, by="records")
    records, _ = mixed(recipe)
    done = 0
    for number, record in enumerate(records, 1):
        done += source_of(record) == "b"
        assert abs(done - number / 10) <= 1
    assert sum(source_of(record) == "a" for record in records) == 400


def test_temperature_makes_sources_more_even(mixed):
    found = []
    for temperature in (1.0, 2.0, 1e9):
        recipe = Recipe({"a": Wish(), "c": Wish()}, by="records", temperature=temperature, total=40)
        found.append(Counter(source_of(record) for record in mixed(recipe)[0])["c"])
    assert found == [round(40 * 40 / 440), round(40 * 40**0.5 / (400**0.5 + 40**0.5)), 20]


def test_languages_of_the_whole_and_weights_of_sources_hold_at_once(mixed):
    languages = {"python": 0.5, "rust": 0.2, "*": 0.3}
    records, counts = mixed(Recipe({"a": Wish(2), "b": Wish(1)}, by="records", languages=languages, total=90))
    by_source, by_language = (Counter(map(key, records)) for key in (source_of, lambda r: r["metadata"].get("lang")))
    found = (by_source["a"], by_language["python"], by_language["rust"], by_language["go"] + by_language[None])
    assert all(abs(count - wanted) <= 2 for count, wanted in zip(found, (60, 45, 18, 27)))  # sums of 2 or 3 lanes
    assert not counts.dropped


def test_languages_without_room_are_dropped_and_counted(mixed):
    records, counts = mixed(Recipe({"a": Wish(1, languages={"go": 1, "rust": 1})}, by="records"))
    others = sum(document["metadata"].get("lang") not in ("go", "rust") for document in documents("a", 400))
    assert counts.dropped == {"language": others}
    found = Counter(record["metadata"]["lang"] for record in records)
    assert found.keys() == {"go", "rust"} and abs(found["go"] - found["rust"]) <= 1


def test_a_language_that_no_record_has_is_an_error(mixed, make_stream, tmp_path):
    stream = make_stream(tmp_path / "plain.zst", [{"id": str(number), "text": "x"} for number in range(5)])
    with pytest.raises(IqcError, match="no records in python"):
        mixed(Recipe({"p": Wish(1)}, languages={"python": 1}), paths={"p": str(stream)})
    recipe = Recipe({"p": Wish(1)}, languages={"*": 1})
    assert len(mixed(recipe, paths={"p": str(stream)})[0]) == 5


def test_bands_come_one_after_the_other_and_nothing_is_lost(mixed):
    easy_first = Difficulty("metadata.score", [0.3, 0.7], ["easy", "medium", "hard"])
    records, _ = mixed(Recipe({"a": Wish(), "b": Wish()}, by="records", difficulty=easy_first))
    assert len({record["id"] for record in records}) == 550
    scores = [record["metadata"]["score"] for record in records if "score" in record["metadata"]]
    bands = [(score >= 0.3) + (score >= 0.7) for score in scores]
    moved = sum(one > other for one, other in zip(bands, sorted(bands)))
    assert moved <= 4  # a record or two of each source at each border
    places = [number for number, record in enumerate(records) if "score" not in record["metadata"]]
    assert max(b - a for a, b in pairwise(places)) < 20  # those without a score are spread over all of it


def test_phases_change_weights_and_difficulty(mixed):
    halves = Difficulty("metadata.score", [0.5], ["easy", "hard"], quantiles=True)
    phases = [Phase(1, {"a": 3, "b": 1}, {"easy": 3, "hard": 1}), Phase(1, {"a": 1, "b": 1}, {"easy": 1, "hard": 3})]
    records, _ = mixed(Recipe({"a": Wish(1), "b": Wish(1)}, by="records", total=160, difficulty=halves, phases=phases))
    first, second = Counter(map(source_of, records[:80])), Counter(map(source_of, records[80:]))
    assert abs(first["b"] - 20) <= 3 and abs(second["b"] - 40) <= 3  # it has two bands, and records without a score


@pytest.mark.parametrize("quantiles", [False, True])
def test_a_score_that_no_record_has_is_an_error(mixed, quantiles):
    nowhere = Difficulty("metadata.nowhere", [0.5], ["easy", "hard"], quantiles)
    with pytest.raises(IqcError, match=r'no record has a number "metadata\.nowhere"'):
        mixed(Recipe({"a": Wish()}, difficulty=nowhere))


def test_records_of_size_zero_are_not_lost(mixed, monkeypatch):
    from iqc.tokens.mix import sources as mix_sources

    monkeypatch.setattr(mix_sources, "counter", lambda by, tokenizer: lambda record: int(record["id"][-1]) % 2)
    records, counts = mixed(Recipe({"a": Wish(), "c": Wish()}, by="tokens"))
    assert len(records) == 440 and counts.extra["mixture"]["lanes"][0]["there"]["amount"] == 200


@pytest.mark.parametrize("wish", [Wish(1), Wish(replay=0.5)])
def test_an_empty_source_is_an_error_unless_nothing_is_wanted_of_it(mixed, world, wish):
    with pytest.raises(IqcError, match="empty"):
        mixed(Recipe({"a": Wish(1), "empty": wish}))
    assert len(mixed(Recipe({"c": Wish(), "empty": Wish()}))[0]) == 40
    assert mixed(Recipe({"empty": Wish()}))[0] == []
    twice = {"empty": Wish(), "other": Wish()}
    assert mixed(Recipe(twice), paths=dict.fromkeys(twice, str(world / "empty.zst")))[0] == []


def test_one_record(mixed, make_stream, tmp_path):
    stream = make_stream(tmp_path / "one.zst", [{"id": "1", "text": ""}])
    records, _ = mixed(Recipe({"o": Wish(epochs=3)}), paths={"o": str(stream)})
    assert [record["id"] for record in records] == ["1", "1#epoch2", "1#epoch3"]


@pytest.mark.parametrize("parted", [False, True])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(world, tmp_path, monkeypatch, parted):
    monkeypatch.setattr(mix_stages, "CHUNK", 2000)
    monkeypatch.setattr(mix_stages, "WINDOWS", 50_000)
    monkeypatch.setattr(mix_stages, "LEAST_WINDOW", 5000)
    paths = {name: str(world / f"{name}.zst") for name in "abc"}
    recipe = Recipe({"a": Wish(3), "b": Wish(1), "c": Wish(replay=0.2)}, total=10_000_000, max_epochs=1000)
    recipe.languages = {"python": 1, "*": 2} if parted else {}

    def run(name, jobs=1):
        how = Settings(output=f"{tmp_path / name}/", jobs=jobs, quiet=True, shard_mib=1)
        return mix_stages.mix(paths, recipe, None, how, 3, True)

    counts = run("whole", 4)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) > 5
    (tmp_path / "part").mkdir()
    for name in sorted(whole)[1::2]:  # some of the shards; the manifest comes first in this order
        (tmp_path / "part" / name).write_bytes(whole[name])
    again = run("part")
    assert {path.name: path.read_bytes() for path in (tmp_path / "part").iterdir()} == whole
    assert (again.json(), again.bytes_out) == (counts.json(), counts.bytes_out)


def test_plain_text_gzip_and_pipes_are_mixed_like_streams(world, mixed, tmp_path, iqc):
    lines = b"".join(orjson.dumps(record) + b"\n" for record in documents("a", 400))
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    recipe = Recipe({"a": Wish(epochs=2)})
    plain, zipped = (mixed(recipe, paths={"a": str(tmp_path / name)})[0] for name in ("a.jsonl", "a.jsonl.gz"))
    assert plain == zipped and len({record["id"] for record in plain}) == 800
    piped = iqc("mix", "a=-", "--epochs", "a=2", "--plain", "-q", stdin=lines).stdout
    assert [json.loads(line) for line in piped.splitlines()] == plain


def test_bad_records_are_skipped_wherever_they_are(mixed, make_stream, tmp_path):
    good = [{"id": str(number), "text": "x"} for number in range(50)]
    stream = make_stream(tmp_path / "s.zst", [*good[:20], {"text": "no id"}, *good[20:]], per_frame=10)
    with pytest.raises(IqcError, match=r's.zst:21: field "id"'):
        mixed(Recipe({"s": Wish()}), paths={"s": str(stream)})
    records, counts = mixed(Recipe({"s": Wish()}), paths={"s": str(stream)}, on_error="skip")
    assert sorted(record["id"] for record in records) == sorted(record["id"] for record in good)
    assert counts.skipped == 1


def test_lineage_has_every_source_by_name(mixed, tmp_path):
    mixed(Recipe({"a": Wish(1), "c": Wish(2)}))
    lineage = lineage_at(str(tmp_path / "out.zst"))
    node = lineage["stages"][lineage["stage"]]
    assert [item["label"] for item in node["inputs"]] == ["a", "c"]
    assert all(item["stage"] in lineage["stages"] for item in node["inputs"])
    assert node["counts"]["sources"]["c"] == {"there": 40, "given": 40}


def test_tokens_are_those_that_packing_gives(mixed, iqc, saved, world, tmp_path):
    """By text, and by the rows that it is packed to: the same tokens."""
    packed = tmp_path / "packed.zst"
    options = ("--tokenizer", saved, "--context", 4096, "-q")
    assert iqc("pack", world / "c.zst", *options, "-o", packed).returncode == 0
    rows = [decode_sequence(record).tokens.size for record in read_records(StreamInput([str(packed)]))]
    _, counts = mixed(Recipe({"c": Wish()}, by="tokens"), tokenizer=str(saved))
    assert counts.extra["mixture"]["lanes"][0]["there"]["amount"] == sum(rows)
    records, counts = mixed(Recipe({"packed": Wish(epochs=2)}, by="tokens"), paths={"packed": str(packed)})
    given = counts.extra["mixture"]["lanes"][0]["given"]
    assert (given["records"], given["amount"]) == (len(records), 2 * sum(rows)) == (2 * len(rows), 2 * sum(rows))
    frames = read_index(str(tmp_path / "out.zst")).frames
    assert [frame.records for frame in frames] == [1] * len(records)  # as a trainer reads them
    with pytest.raises(IqcError, match="--by tokens of records that are no sequences"):
        mixed(Recipe({"c": Wish()}, by="tokens"))


def test_the_same_records_twice_are_refused(mixed, world):
    paths = {"a": str(world / "a.zst"), "x": str(world / "a.zst")}
    with pytest.raises(IqcError, match="sources a and x hold the same records"):
        mixed(Recipe({"a": Wish(1), "x": Wish(1)}), paths=paths)
    own = {"a": Wish(1, languages={"go": 1}), "x": Wish(1, languages={"rust": 1})}
    assert mixed(Recipe(own), paths=paths)[0]


def test_what_no_proportion_has_room_for_is_explained(mixed, tmp_path):
    _, counts = mixed(Recipe({"c": Wish(1, languages={"go": 1})}), explain=str(tmp_path / "why.zst"))
    why = list(read_records(StreamInput([str(tmp_path / "why.zst")])))
    assert len(why) == counts.dropped["language"] > 0
    assert all(record["dropped"]["rule"] == "language" and record["dropped"]["value"] != "go" for record in why)


def test_a_shard_that_ends_with_the_mixture_is_the_last(world, tmp_path, make_stream):
    """Its limit is reached by the very last record: nothing is left for another one."""
    lines = [{"id": str(number), "text": "x" * (1 << 20)} for number in range(2)]
    stream = str(make_stream(tmp_path / "s.zst", lines))
    how = Settings(output=f"{tmp_path / 'out'}/", jobs=1, quiet=True, shard_mib=1)
    mix_stages.mix({"s": stream}, Recipe({"s": Wish(epochs=2)}), None, how, 0, True)
    shards = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert len(shards) == 4
    assert len(list(read_records(StreamInput([str(tmp_path / "out")])))) == 4


@pytest.mark.parametrize("parted", [False, True])
def test_a_mixture_is_repeated_with_ids_of_its_own(mixed, tmp_path, parted):
    """The number of a repeat goes on where that of the source ended."""
    once, _ = mixed(Recipe({"c": Wish(epochs=3)}))
    source = tmp_path / "once.zst"
    (tmp_path / "out.zst").rename(source)
    recipe = Recipe({"once": Wish(weight=1)}, max_epochs=2, languages={"python": 1, "*": 1} if parted else {})
    records, _ = mixed(recipe, paths={"once": str(source)})
    assert len({record["id"] for record in records}) == len(records)
    numbers = {int(record["id"].partition("#epoch")[2] or 1) for record in records}
    assert 3 < max(numbers) <= 6
    if not parted:
        assert len(records) == 2 * len(once)
        stems = Counter(record["id"].partition("#")[0] for record in records)
        assert stems == {f"c-{number}": 6 for number in range(40)}


def test_a_full_disk_is_said_with_its_place(tmp_path):
    with lanes.Spill(str(tmp_path)) as spill, open("/dev/full", "wb", buffering=0) as full:
        spill.add(lanes.Lane("a"), b"{}", 1)
        spill.file.close()
        spill.file = full
        with pytest.raises(IqcError, match=f"{tmp_path}: the temporary copy of sources cannot be written: No space"):
            spill.finish()
