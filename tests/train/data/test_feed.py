"""The rows of an update depend on the seed, its number and the history of the shares, and on nothing else."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import permutations

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError, UsageError
from iqc.tokens.loader import Batch, Limits, batches
from iqc.train.data.curriculum import MixtureSettings
from iqc.train.data.domains import domain_losses, domain_sums
from iqc.train.data.feed import EVENTS, Data
from iqc.train.data.sources import check_asked, open_held_out, open_sources

LIMITS = Limits(context=12, vocab_size=1_000_000, pad_id=7)
SIZES = {"code": 23, "chat": 7, "math": 40}
BASES = {"code": 0, "chat": 100_000, "math": 200_000}  # of their tokens: row i of a source begins with base + 100 * i


@pytest.fixture(scope="module")
def place(tmp_path_factory, rows_of, write_rows):
    """Three sources, and one that is empty."""
    made = tmp_path_factory.mktemp("sources")
    for name, size in SIZES.items():
        write_rows(made / name, rows_of(size, base=BASES[name]))
    write_rows(made / "nothing", [])
    return made


@contextmanager
def opened(place, names=("code", "chat", "math"), asked=None, steps=100, held=(), **how):
    with open_sources([f"{name}={place / name}" for name in names]) as sources, ExitStack() as stack:
        held_out = open_held_out([f"{name}={place / name}" for name in held], LIMITS, 4, stack)[0]
        how = {"seed": 1, "batch_rows": 4} | how
        with Data(sources, held_out, asked or MixtureSettings(), LIMITS, steps=steps, **how) as data:
            yield data


def firsts(batch):
    """The first token of every row: which row it is."""
    return batch.tokens[:, 0].tolist()


def of(name, rows):
    return [row for row in rows if BASES[name] <= row < BASES[name] + 100_000]


def run(data, updates):
    return [row for update in updates for row in firsts(data.batch(update))]


def test_inputs_without_names_are_one_set_in_the_order_that_it_had(place):
    paths = [str(place / "code"), str(place / "chat")]
    with (
        open_sources(paths) as sources,
        Data(sources, {}, MixtureSettings(), LIMITS, seed=3, batch_rows=4, steps=20) as data,
    ):
        assert data.domains == () and data.state() == {}
        for update, expected in zip(range(20), batches(sources.dataset, LIMITS, seed=3, batch_rows=4)):
            found = data.batch(update)
            assert (found.tokens == expected.tokens).all() and (found.weights == expected.weights).all()
            assert found.domains is None


def test_shares_are_exact_at_every_update(place):
    asked = MixtureSettings({"code": 3, "math": 1}, replay={"chat": 0.2})
    with opened(place, asked=asked, steps=60) as data:
        assert data.domains == ("chat", "code", "math")
        given = np.cumsum([np.bincount(data.batch(update).domains, minlength=3) for update in range(60)], axis=0)
        assert data.plan() == "chat 48 rows (6.86 epochs), code 144 rows (6.26 epochs), math 48 rows (1.20 epochs)"
    wanted = np.arange(4, 244, 4)[:, None] * [0.2, 0.6, 0.2]
    assert (np.abs(given - wanted) <= 1).all()


def test_domains_are_the_sources_of_the_rows(place):
    with opened(place) as data:
        for update in range(17):
            batch = data.batch(update)
            assert [BASES[data.domains[at]] for at in batch.domains] == [
                row // 100_000 * 100_000 for row in firsts(batch)
            ]


def test_without_weights_all_sources_end_together(place):
    with opened(place, names=("code", "math"), batch_rows=7, steps=9) as data:
        assert len(set(run(data, range(9)))) == 63  # 23 + 40, each row once


def test_a_source_has_an_order_of_its_own(place):
    """Whatever the other sources, their weights, and the place on the command line; and every epoch another."""
    alone = {}
    for name in SIZES:
        with opened(place, names=(name,)) as data:
            alone[name] = run(data, range(40))
            epochs = [alone[name][at : at + SIZES[name]] for at in range(0, 120, SIZES[name])][:3]
            assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1 and len(set(map(tuple, epochs))) == 3
    for weights in ({}, {"code": 5}, {"chat": 0.5, "math": 2}):
        with opened(place, asked=MixtureSettings(weights)) as data:
            mixed = run(data, range(40))
        for name in SIZES:
            mine = of(name, mixed)
            assert mine and mine == alone[name][: len(mine)]


def test_the_order_of_the_names_does_not_matter(place):
    found = []
    for names in permutations(SIZES):
        with opened(place, names=names, asked=MixtureSettings({"math": 2})) as data:
            found.append((run(data, range(20)), data.sources.asked(), data.domains))
    assert all(other == found[0] for other in found)


@given(ranks=st.sampled_from([1, 2, 3, 4, 7]), batch_rows=st.integers(1, 9), update=st.integers(0, 50))
@settings(max_examples=25)
def test_ranks_share_the_global_batches(place, ranks, batch_rows, update):
    asked = MixtureSettings({"code": 3, "math": 0.3}, phases=["0.3:code,chat", "0.7:math,code"])
    with opened(place, asked=asked, batch_rows=batch_rows) as data:
        whole = data.batch(update)
    parts = []
    for rank in range(ranks):
        with opened(place, asked=asked, batch_rows=batch_rows, rank=rank, ranks=ranks) as data:
            parts.append(data.batch(update))
            others = [data.batch_of(update, other) for other in range(ranks)]
            assert [row for other in others for row in firsts(other)] == firsts(whole)
            assert firsts(others[rank]) == firsts(parts[rank])
    assert [row for part in parts for row in firsts(part)] == firsts(whole)
    assert np.concatenate([part.domains for part in parts]).tolist() == whole.domains.tolist()


def test_any_update_at_any_time(place):
    with opened(place) as data:
        whole = [firsts(data.batch(update)) for update in range(30)]
        for update in (7, 8, 3, 3, 29, 0):
            assert firsts(data.batch(update)) == whole[update]
    with opened(place) as data:
        assert [firsts(data.batch(update)) for update in (20, 21)] == whole[20:22]


def test_a_rank_reads_its_own_rows_alone(place, monkeypatch):
    with opened(place, rank=1, ranks=4, batch_rows=8, steps=1) as data:
        asked = []
        real = type(data.sources.dataset).rows
        monkeypatch.setattr(
            type(data.sources.dataset), "rows", lambda self, indices: asked.append(len(indices)) or real(self, indices)
        )
        data.batch(0)
    assert asked == [2]


def test_phases_have_sources_of_their_own_and_replay_has_its_share_in_all(place, tmp_path):
    asked = MixtureSettings(replay={"chat": 0.25}, phases=["0.4:code", "0.4:code,math=3", "0.2:math"])
    with opened(place, asked=asked, steps=50, batch_rows=8, directory=tmp_path) as data:
        assert not list(tmp_path.iterdir())  # the run may be refused yet
        data.start(lambda dataset: 0.0)
        given = [np.bincount(data.batch(update).domains, minlength=3) for update in range(50)]
    sums = [np.sum(given[start:end], axis=0) for start, end in ((0, 20), (20, 40), (40, 50))]
    assert np.abs(np.array(sums) - [[40, 120, 0], [40, 30, 90], [20, 0, 60]]).max() <= 1
    lines = [orjson.loads(line) for line in (tmp_path / EVENTS).read_bytes().splitlines()]
    assert [line["update"] for line in lines] == [0, 20, 40]
    assert lines[1]["shares"] == {"chat": 0.25, "code": 0.1875, "math": 0.5625} and lines[1]["parts"] == [4, 3, 9]


ADAPTED = MixtureSettings({"code": 1, "math": 1}, {"chat": 0.1}, valid_every=5, adapt=True, least=0.05)


def measure(data, rows):
    """A loss that depends on the rows that were trained on: what is exactly resumed must know them."""
    seen = {name: len(of(name, rows)) for name in SIZES}
    sets = {id(dataset): name for name, dataset in data.held_out.items()}
    return lambda dataset: 3.0 / (1 + 0.02 * seen[sets[id(dataset)]]) + (0.3 if "code" in sets[id(dataset)] else 0)


def adapt_until(data, first, updates, rows, metrics):
    data.start(measure(data, rows))
    states = {}
    for update in range(first, updates):
        rows += firsts(data.batch(update))
        metrics.append(data.after(update + 1, measure(data, rows)))
        states[update + 1] = (orjson.dumps(data.state()), len(rows))
    return states


@pytest.mark.parametrize("ranks", [1, 4])
def test_adapted_weights_go_on_exactly(place, tmp_path, ranks):
    """From every update, in a new process or back in the same one; and 4 ranks see the rows of one."""
    asked = replace(ADAPTED, reference={"code": 1.0, "math": 2.9})
    held = ("code", "math", "chat")
    with opened(place, asked=asked, steps=23, held=held, directory=tmp_path) as data:
        rows, metrics = [], []
        states = adapt_until(data, 0, 23, rows, metrics)
        events = (tmp_path / EVENTS).read_bytes()
        assert sorted(number + 1 for number, made in enumerate(metrics) if made) == [5, 10, 15, 20, 23]
        assert set(metrics[22]) == {"valid_loss"} and set(metrics[4]) == {"valid_loss", "shares"}
        shares = [orjson.loads(line)["shares"] for line in events.splitlines()]
        assert len(shares) == 5 and all(line["chat"] == pytest.approx(0.1) for line in shares)
        assert [line["code"] for line in shares] == sorted(line["code"] for line in shares)
        assert shares[0]["code"] == 0.45 and shares[-1]["code"] == pytest.approx(0.85)  # as much as --least leaves
        for update in (3, 5, 12, 20):
            state, done = states[update]
            again, measured = rows[:done], metrics[:update]
            data.load(orjson.loads(state))
            adapt_until(data, update, 23, again, measured)
            assert again == rows and measured == metrics and (tmp_path / EVENTS).read_bytes() == events
    for update in (0, 5, 18):
        state, done = states.get(update, (b"{}", 0))
        parts = []
        for rank in range(ranks):
            with opened(place, asked=asked, steps=23, held=held, rank=rank, ranks=ranks) as data:
                data.load(orjson.loads(state))
                part = []
                for step in range(update, 23):
                    part.append(firsts(data.batch(step)))
                    data.after(step + 1, measure(data, rows[: 4 * (step + 1)]))
                parts.append(part)
        assert [row for step in zip(*parts) for part in step for row in part] == rows[done:]


def test_what_is_not_decided_is_not_read(place):
    with opened(place, asked=ADAPTED, steps=20, held=("code", "math")) as data:
        data.start(lambda dataset: 1.0)
        assert data.reference == {"code": 1.0, "math": 1.0}
        with pytest.raises(ValueError, match=r"before `after\(5\)`"):
            data.batch(5)


def test_a_source_that_is_forgotten_comes_back(place):
    """Without references the losses at the start are those to keep: shares stay while none is lost."""
    with opened(place, asked=ADAPTED, steps=30, held=("code", "math")) as data:
        losses = {"code": 2.0, "math": 1.0}
        sets = {id(dataset): name for name, dataset in data.held_out.items()}

        def loss(dataset):
            return losses[sets[id(dataset)]]

        data.start(loss)
        losses["code"] = 1.5
        assert data.after(5, loss)["shares"] == {"chat": 0.1, "code": 0.45, "math": 0.45}
        losses["math"] = 1.2
        after = data.after(10, loss)["shares"]
        assert after["math"] / after["code"] == pytest.approx(np.exp(0.2)) and after["chat"] == pytest.approx(0.1)


def test_losses_by_domain_are_those_of_their_rows():
    draw = np.random.default_rng(0)
    weights = draw.random((6, 5), np.float32)
    weights[3] = 0
    domains = np.array([2, 0, 2, 1, 0, 2])
    losses = torch.from_numpy(draw.random(6).astype(np.float32))
    tokens = np.zeros((6, 5), np.int64)
    parts = [Batch(tokens[a:b], weights[a:b], [], domains[a:b]) for a, b in ((0, 2), (2, 6))]
    sums = domain_sums(parts[0], losses[:2], 4) + domain_sums(parts[1], losses[2:], 4)
    found = domain_losses(sums, ("a", "b", "c", "d"))
    assert list(found) == ["a", "c"]  # b has nothing to learn here, d no rows
    for name, rows in (("a", [1, 4]), ("c", [0, 2, 5])):
        assert found[name] == pytest.approx(losses[rows].double().sum().item() / weights[rows].sum(dtype=np.float64))
    assert domain_sums(Batch(tokens, weights, []), losses, 0).shape == (2, 0)


def refuse(place, inputs, match, held=(), fresh=False, **asked):
    with pytest.raises(IqcError, match=match) as caught, ExitStack() as stack:
        sources = stack.enter_context(open_sources([given.format(place) for given in inputs]))
        held_out = open_held_out([f"{name}={place / name}" for name in held], LIMITS, 4, stack)[0]
        settings_ = MixtureSettings(**asked)
        check_asked(settings_, sources, held_out, 10, fresh)
        Data(sources, held_out, settings_, LIMITS, seed=0, batch_rows=4, steps=10)
    assert caught.value.remedy


TWO = ["code={}/code", "math={}/math"]
ADAPT = {"adapt": True, "valid_every": 2, "held": ["code", "math"]}


@pytest.mark.parametrize(
    ("inputs", "match", "asked"),
    [
        ([*TWO, "chat={}/nothing"], "source chat is empty", {}),
        ([*TWO, "code={}/chat"], "are both code", {}),
        ([*TWO, "{}/chat"], "chat has no name, other inputs have one", {}),
        (["{}/code"], "--weight is of sources with names", {"weights": {"code": 1}}),
        (["{}/code"], "--phase is of sources with names", {"phases": ["1:code"]}),
        (TWO, "no source chat", {"weights": {"chat": 1}}),
        (TWO, "no source has a weight above 0", {"weights": {"code": 0, "math": 0}}),
        (TWO, "replay alone", {"replay": {"code": 0.5, "math": 0.4}}),
        (TWO, "replay code=1", {"replay": {"code": 1}}),
        ([*TWO, "chat={}/chat"], "leave nothing for the other", {"replay": {"code": 0.5, "math": 0.5}}),
        (TWO, "a weight and a share of replay", {"replay": {"code": 0.5}, "weights": {"code": 1}}),
        (TWO, "no source chat", {"phases": ["1:chat"]}),
        (TWO, "code replays", {"phases": ["1:code"], "replay": {"code": 0.1}}),
        (TWO, "code is named twice", {"phases": ["1:code,code=2"]}),
        (TWO, "--phase 1:code=x", {"phases": ["1:code=x"]}),
        (TWO, "--phase -1:code", {"phases": ["-1:code"]}),
        (TWO, "--phase 1:code=nan", {"phases": ["1:code=nan"]}),
        (TWO, "phases of 0.5 of the run", {"phases": ["0.5:code,math"]}),
        (TWO, "source math is in no phase", {"phases": ["0.5:code", "0.5:code"]}),
        (TWO, "--phase 1:code=0", {"phases": ["1:code=0"]}),
        (TWO, "phase 2 of 10 updates has none", {"phases": ["0.49:code", "0.01:math", "0.5:code"]}),
        (TWO, "--valid-every without held-out rows", {"valid_every": 2}),
        (TWO, "--adapt without --valid-every", {"adapt": True, "held": ["code", "math"]}),
        (TWO, "--adapt after 10 updates of 10", ADAPT | {"valid_every": 10}),
        (TWO, "replay alone", ADAPT | {"replay": {"code": 0.5, "math": 0.4}}),
        (TWO, "math has no held-out rows", ADAPT | {"held": ["code"]}),
        (TWO, "--adapt and --phase", ADAPT | {"phases": ["1:code,math"]}),
        (TWO, "--adapt and --weight code=0", ADAPT | {"weights": {"code": 0}}),
        (TWO, "code has no loss to be reached", ADAPT | {"fresh": True}),
        (TWO, "math has no loss to be reached", ADAPT | {"reference": {"code": 1.0}}),
        (TWO, "--reference x: no such source", ADAPT | {"reference": {"code": 1.0, "math": 1.0, "x": 1.0}}),
        (TWO, "--reference without --adapt", {"reference": {"code": 1.0}}),
        (TWO, "--least 0.6 --most 1", ADAPT | {"least": 0.6}),
        (TWO, "--least 0.01 --most 0.4", ADAPT | {"most": 0.4}),
    ],
)
def test_what_does_not_go_together_is_said_before_the_first_step(place, inputs, match, asked):
    refuse(place, inputs, match, **asked)


def test_sources_that_were_packed_otherwise_are_refused_by_name(tmp_path, rows_of, write_rows):
    write_rows(tmp_path / "a", rows_of(5), {"longest": 6}, {"context": 12, "tokenizer": "ours"})
    write_rows(tmp_path / "b", rows_of(5), {"longest": 6}, {"context": 6, "tokenizer": "ours"})
    write_rows(tmp_path / "c", rows_of(5), {"longest": 99}, {"context": 12, "tokenizer": "ours"})
    write_rows(tmp_path / "d", rows_of(5), {"longest": 6}, {"context": 12, "tokenizer": "another"})
    for name, match in (
        ("b", "source a was packed for rows of 12 tokens, source z for 6"),
        ("c", "rows of 99 tokens for a context of 12"),
        ("d", "packed with tokenizer another"),
    ):
        with open_sources([f"a={tmp_path}/a", f"z={tmp_path}/{name}"]) as sources:
            with pytest.raises(IqcError, match=match) as caught:
                sources.check(LIMITS, "ours")
            assert "pack" in caught.value.remedy and (name == "b" or caught.value.where == "source z")
    with open_sources([f"{tmp_path}/a", f"{tmp_path}/b"]) as sources:  # one set: as it was
        sources.check(LIMITS, "ours")


def test_a_file_with_an_equals_sign_in_its_name_is_a_file(tmp_path, rows_of, write_rows):
    write_rows(tmp_path / "a=b", rows_of(5))
    with open_sources([str(tmp_path / "a=b")]) as sources:
        assert not sources.named
    with pytest.raises(UsageError, match="several --valid"), ExitStack() as stack:
        open_held_out([str(tmp_path / "a=b")] * 2, LIMITS, 4, stack)
