"""One of four gloo ranks of tests/model/test_context_ranks.py: losses and gradients over rings of two and of four
processes against the whole rows. Arguments: rank, a file to meet at, a file for what rank 0 finds, as JSON."""

import copy
import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from iqc.kernels.ring import ProcessRing
from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder, Recompute

torch.set_num_threads(1)


class Ledger:
    """Sums of the messages that this rank sent and got, in order, by peer."""

    def __init__(self):
        self.out, self.came = {}, {}

    def sent(self, to, tensor):
        self.out.setdefault(to, []).append(tensor.double().sum().item())

    def received(self, source, tensor):
        self.came.setdefault(source, []).append(tensor.double().sum().item())


def rows(seed):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (2, 131), generator=g)
    return tokens, [[5, 80, 30], [131]], torch.randint(0, 3, (2, 131), generator=g).float()


def gradients(model, batch, ring):
    model.ring = ring
    loss, weight = model.loss(*batch)
    loss.backward()
    found = [loss.detach(), weight.double(), *(p.grad for p in model.parameters())]
    model.zero_grad()
    return found


def main():
    rank, place, output = int(sys.argv[1]), *sys.argv[2:]
    dist.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=4, timeout=timedelta(minutes=1)
    )
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    found = {}
    for name, loops in (("dense", 1), ("loop", 2)):
        config = ModelConfig(50, 24, 40, 2, 6, 2, 256, loop_num=loops, loop_window_size=9)
        model = Decoder(config, seed=1).double().train()
        model.model.recompute = Recompute.parse("block:1,mlp:1")
        for size, group in ((2, pairs[rank // 2]), (4, dist.group.WORLD)):
            ledger = Ledger()
            batch = rows(rank // size)  # two rings of two have rows of their own
            mine = gradients(copy.deepcopy(model), batch, ProcessRing(group, ledger))
            true = gradients(copy.deepcopy(model), batch, None)
            for tensor in mine:
                dist.all_reduce(tensor, group=group)
            worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(mine, true))
            books = [None] * dist.get_world_size()
            dist.all_gather_object(books, (ledger.out, ledger.came))
            agree = all(books[to][1][me] == sums for me, (out, _) in enumerate(books) for to, sums in out.items())
            worsts = [None] * dist.get_world_size()
            dist.all_gather_object(worsts, worst)
            messages = sum(len(sums) for sums in ledger.out.values())
            found[f"{name} {size}"] = {"worst": max(worsts), "agree": agree, "messages": messages}
    if rank == 0:
        with open(output, "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
