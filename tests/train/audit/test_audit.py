"""The audit among ranks that are threads of this process: what it finds, whom it names, that sound updates pass."""

import random
import threading
from types import SimpleNamespace

import pytest
import torch

from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder
from iqc.train.audit import audit as module
from iqc.train.audit import faults
from iqc.train.audit.audit import ELSEWHERE, Audit, held
from iqc.train.audit.finding import CHECKS, differing
from iqc.train.audit.matrix import LAYOUTS, VERDICTS, expected, rows
from iqc.train.audit.messages import Ledger
from iqc.train.optimizer import make_optimizer

torch.set_num_threads(1)


class Thread:
    """A rank that is a thread; what is gathered meets in a list that all share."""

    device, context = torch.device("cpu"), 1

    def __init__(self, rank, shared):
        self.rank, self.shared, self.size = rank, shared, len(shared.slots)
        self.data_rank, self.data_ranks, self.main = rank, self.size, rank == 0

    def exchange(self, value):
        self.shared.slots[self.rank] = value
        self.shared.barrier.wait(30)
        found = list(self.shared.slots)
        self.shared.barrier.wait(30)
        return found

    def gather(self, tensor):
        return torch.stack(self.exchange(tensor.clone()))


def together(size, work):
    """work(ranks) as `size` ranks; what each returned."""
    shared = SimpleNamespace(slots=[None] * size, barrier=threading.Barrier(size))
    results = [None] * size

    def run(rank):
        try:
            results[rank] = work(Thread(rank, shared))
        except BaseException as error:
            results[rank] = error
            shared.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results


class Plain:
    """Data parallel over such ranks."""

    replicated = frozenset({"parameters", "gradients"})

    def __init__(self, ranks):
        self.ranks = ranks
        self.model = Decoder(ModelConfig(20, 8, 12, 1, 2, 1, 16, loop_num=2, loop_window_size=4), seed=1).train()
        self.optimizer = make_optimizer(self.model, 1e-3, "adamw")

    def reduce(self):
        for parameter in self.model.parameters():
            parameter.grad.copy_(self.ranks.gather(parameter.grad).sum(0))

    def discard(self):
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self):
        return ((name, parameter.grad) for name, parameter in self.model.named_parameters())


class Run:
    def __init__(self, ranks, every):
        self.engine, self.ranks = Plain(ranks), ranks
        self.audit = Audit(self.engine, every, self.rows)

    def rows(self, step, rank):
        return torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(100 * step + rank))

    def accumulate(self, batch):
        total = 0.0
        for part in batch.split(1):
            nll, _ = self.engine.model.loss(part)
            (nll / 100).backward()
            total += nll.detach()
        return {"loss": total}

    def attempt(self, step, after=None):
        self.audit.gradients(step, self.rows(step, self.ranks.rank), self.accumulate)
        self.engine.reduce()
        if after:
            after()
        return self.audit.check(step)

    def apply(self, step):
        self.engine.optimizer.step()
        self.engine.discard()
        self.audit.applied(step)


@pytest.fixture(autouse=True)
def objects_between_threads(monkeypatch):
    """What a rank finds at home goes by torch.distributed between processes."""
    current = threading.local()
    real = Audit.check

    def check(self, step):
        current.ranks = self.ranks
        return real(self, step)

    def all_gather_object(out, value):
        out[:] = current.ranks.exchange(value)

    monkeypatch.setattr(Audit, "check", check)
    monkeypatch.setattr(module.dist, "all_gather_object", all_gather_object)


@pytest.mark.parametrize(("size", "every"), [(1, 1), (1, 2), (2, 0), (2, 1), (3, 2)])
def test_sound_updates_pass_and_are_the_same_as_without_an_audit(size, every):
    def work(ranks):
        run, bare = Run(ranks, every), Run(ranks, 0)
        for step in range(ELSEWHERE + 2):
            assert run.attempt(step) == []
            run.apply(step)
            bare.attempt(step)
            bare.apply(step)
        pairs = zip(held(run.engine).values(), held(bare.engine).values())
        return all(torch.equal(one, other) for one, other in pairs)

    assert together(size, work) == [True] * size


@pytest.mark.parametrize("step", [0, 1])  # 0 is computed on another rank as well
@pytest.mark.parametrize("place", [faults.activation, faults.own_gradient])
def test_a_passing_fault_is_seen_named_and_gone_when_repeated(step, place):
    def work(ranks):
        run = Run(ranks, 1)
        accumulate, calls = run.accumulate, []

        def spoilt(batch):
            calls.append(batch)
            if ranks.rank == 1 and len(calls) == 2 + run.audit.elsewhere(step):
                with place(run.engine, random.Random(4)):
                    return accumulate(batch)
            return accumulate(batch)

        run.accumulate = spoilt
        found = run.attempt(step)
        run.engine.discard()
        again = run.attempt(step)
        return [str(finding) for finding in found], again, run.audit.to_blame(step)

    (found, again, blame), other, _ = together(3, work)
    assert (found, again, blame) == other and found and again == [] and blame == (1,)
    assert all(text.startswith(f"update {step}, rank") for text in found)
    assert any("rank 1: gradient of" in text and "computed again" in text for text in found)


def test_a_device_that_is_wrong_in_the_same_way_each_time_is_seen_from_another():
    def work(ranks):
        run = Run(ranks, 1)
        if ranks.rank == 1:
            layer = run.engine.model.model.layers[0].mlp
            layer.register_forward_hook(lambda module, inputs, output: output * (1 + 2**-20))
        seen = []
        for step in range(ELSEWHERE):
            seen.append(sorted({(finding.check, finding.ranks) for finding in run.attempt(step)}))
            run.apply(step)
        return seen

    seen, _ = together(2, work)
    assert seen == [[("recomputation", (0, 1))]] + [[]] * (ELSEWHERE - 1)


def test_what_is_stored_is_seen_by_replicas_and_by_the_memory_of_an_audited_update():
    def work(ranks):
        run = Run(ranks, 4)
        checks = []
        for step in range(4):
            good = {name: tensor.detach().clone() for name, tensor in held(run.engine).items()}
            if step and ranks.rank == 2:
                faults.weight(run.engine, random.Random(step))
            checks.append(sorted({(finding.check, finding.ranks) for finding in run.attempt(step)}))
            run.engine.discard()
            for name, tensor in held(run.engine).items():
                tensor.detach().copy_(good[name])
            run.audit.applied(step)
        return checks

    checks = together(3, work)[0]
    assert checks[0] == [] and checks[1] == checks[2] == [("parameters", (2,))]
    assert {("memory", (2,)), ("parameters", (2,))} <= set(checks[3]) and all(2 in ranks for _, ranks in checks[3])


@pytest.mark.parametrize("size", [2, 3])
def test_reduced_gradients_that_differ_are_named_by_majority(size):
    def work(ranks):
        run = Run(ranks, 100)
        flip = (lambda: faults.reduced_gradient(run.engine, random.Random(1))) if ranks.rank == 1 else None
        (finding,) = run.attempt(5, after=flip)
        run.engine.discard()
        assert run.attempt(5) == []
        return finding, run.audit.to_blame(5)

    finding, blame = together(size, work)[0]
    assert (finding.step, finding.check, blame) == (5, "gradients", (1,))
    assert finding.ranks == ((0, 1) if size == 2 else (1,)) and finding.tensor.startswith("gradient of ")


@pytest.mark.parametrize("spoilt", [None, 0, 1, "order"])
def test_messages_are_compared_at_both_ends(spoilt):
    def work(ranks):
        ledger = Ledger(ranks)
        other = 1 - ranks.rank
        for number in range(2):
            message = torch.arange(4.0) + 10 * ranks.rank + number
            ledger.sent(other, message)
            got = torch.arange(4.0) + 10 * other + (1 - number if spoilt == "order" else number)
            if ranks.rank == 1 and spoilt == number:
                faults.flip(got, random.Random(0))
            ledger.received(other, got)
        sent, received, *_ = (sum(column) % 2**64 for column in zip(*ranks.gather(ledger.summary()).tolist()))
        return sent == received, [str(finding) for finding in ledger.differences(7)]

    (same, found), other = together(2, work)
    assert (same, found) == other and same == (spoilt is None) == (not found)
    if spoilt in (0, 1):
        assert found == [f"update 7, rank 1: message {spoilt} from rank 0 to rank 1 is not what was sent"]


def test_the_majority_is_right():
    assert list(differing([[1, 5], [1, 5]])) == []
    assert list(differing([[1, 5], [1, 6]])) == [(1, (0, 1))]
    assert list(differing([[1, 5], [1, 6], [1, 5]])) == [(1, (1,))]
    assert list(differing([[1], [2], [3]])) == [(0, (0, 1, 2))]


def test_the_matrix_says_one_thing_of_every_place_and_layout():
    cells = [(row.place, layout) for row in rows() for layout in row.layouts]
    assert len(cells) == len(set(cells))
    for row in rows():
        assert row.verdict in VERDICTS and set(row.layouts) <= set(LAYOUTS) and row.why
        assert (row.check in CHECKS) == (row.verdict != "cannot-see")
        assert all(expected(row.place, layout) == row for layout in row.layouts)
    for place in {row.place for row in rows()}:
        said = {layout for name, layout in cells if name == place}
        missing = {"local-1"} if "messages" in place else set()
        missing |= {"local-n"} if "gathered" in place else set()
        assert said == set(LAYOUTS) - missing, place
