"""DeepSpeed's ZeRO: optimiser (1), gradients (2) and weights (3) divided over the ranks, on the CPU where asked.

What is DeepSpeed's is used through its engine and through the flat partitions that its optimisers keep; the optimiser
itself is torch's form, ours. With bf16, weights and messages are bfloat16, masters and moments float32: checkpoints
hold the masters, so they are the local engine's. DeepSpeed averages over ranks: losses are scaled up by their number.

Its own checkpoints are not used: they fit one number of ranks and one stage.
"""

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iqc.errors import IqcError
from iqc.model.decoder import Block, Decoder
from iqc.train.checkpoints import MODEL, OPTIMIZER, Piece, Stored, load_pieces, pieces_of
from iqc.train.ranks import Ranks

BUCKET = 200_000_000  # elements of gradients that are reduced, and of weights that are gathered, in one message
PREFETCH = 100_000_000  # elements of weights that ZeRO-3 gathers ahead
LIVE = 1_000_000_000  # elements of weights that it keeps gathered
WHOLE = 100_000  # elements up to which it does not divide a weight
MOMENTS = ("exp_avg", "exp_avg_sq")

T = TypeVar("T")


class Objective(nn.Module):
    """Runs losses inside a module's forward: ZeRO-3 gathers weights there."""

    def __init__(self, model: Decoder):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *args: Any) -> T:
        return function(self.model, *args)


class Held(NamedTuple):
    """This rank's part of a parameter: elements `start` and on of it, flattened, are those from `offset` of `flat`, a
    partition of the master weights."""

    start: int
    size: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.detach().view(-1)[self.offset : self.offset + self.size]


def configuration(zero: int, offload: str, bf16: bool, clip: float, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's own form of the settings; `offload` is none, optimizer or all."""
    pinned = {"device": "cpu", "pin_memory": device.type == "cuda"}
    stage: dict[str, Any] = {
        "stage": zero,
        "overlap_comm": device.type == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "stage3_prefetch_bucket_size": PREFETCH,
        "stage3_max_live_parameters": LIVE,
        "stage3_param_persistence_threshold": WHOLE,
    }
    if offload != "none":
        stage["offload_optimizer"] = pinned
    if offload == "all":
        stage["offload_param"] = pinned
    return {
        "train_micro_batch_size_per_gpu": 1,  # it must be told something; the loop counts tokens itself
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip,
        "zero_optimization": stage,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it compiles for minutes; torch's own is fused on a CPU, too
        "steps_per_print": sys.maxsize,
    }


class DeepSpeed:
    def __init__(
        self,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        clip: float,
        zero: int,
        offload: str = "none",
        bf16: bool = False,
    ):
        """Takes the model's weights as they are, in float32."""
        deepspeed = import_deepspeed(ranks)
        self.model, self.optimizer, self.ranks, self.zero = model, optimizer, ranks, zero
        self.replicated = frozenset([("parameters", "gradients"), ("parameters",), ("parameters",), ()][zero])
        self.named: list[tuple[str, Any]] = list(model.named_parameters())  # Any: DeepSpeed hangs its own on them
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.named}
        exact = {name: parameter.detach().flatten() for name, parameter in self.named} if bf16 else {}
        settings = configuration(zero, offload, bf16, clip, ranks.device)
        objective = Objective(model)
        if zero == 3:  # parameter by parameter, so that the device never holds the whole model
            objective.to(torch.bfloat16 if bf16 else None)
            deepspeed.zero.Init(module=objective, config_dict_or_path=settings)
            deepspeed.utils.set_z3_leaf_modules(objective, [Block])
        with by_parameter():
            self.engine = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings)[0]
        self.zeroed = self.engine.optimizer  # DeepSpeed's optimiser around ours; at stage 0 ours
        for group in optimizer.param_groups:  # where its partitions are, torch has other fast forms than for the model
            group["fused"], group["foreach"] = offload != "none" or ranks.device.type == "cpu", False
        with torch.no_grad():
            for name, held in self.held():
                if name in exact:  # DeepSpeed made the masters from weights that were rounded to bfloat16
                    held.of(held.flat).copy_(exact[name][held.start : held.start + held.size])

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        return self.engine(function, *args)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.ranks.size, scale_wrt_gas=False)

    def reduce(self) -> float:
        """The norm; the gradients were reduced in the last backward."""
        norms = torch.stack(torch._foreach_norm([part.float() for _, part in self.gradients()])).double()
        squares = norms.square().sum()
        if self.zero:
            squares = self.ranks.sum(squares.to(self.ranks.device))
        return math.sqrt(squares.item())

    def apply(self, rate: float) -> None:
        for group in self.zeroed.param_groups:
            group["lr"] = rate
        self.engine.step()

    def discard(self) -> None:
        """What DeepSpeed does when it passes over an update whose gradients overflowed."""
        if not self.zero:
            self.engine.zero_grad()
            return
        zeroed = self.zeroed
        zeroed.zero_grad(set_to_none=True)
        if self.zero < 3:
            zeroed.micro_step_id = -1
            zeroed._release_preflattened_grad_buffers()
            for group in range(len(zeroed.bit16_groups)):  # its own lists of tensors stay: parameters refer to the dict
                zeroed.averaged_gradients[group] = zeroed.all_grad_tensors[group] = None
            zeroed._offload_accumulated_param_ids = set()
        else:
            zeroed._offload_boundary_param_ids = set()
        zeroed.reset_cpu_buffers()

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.named:
            if self.zero == 0:
                yield name, parameter.grad
            elif self.zero == 3:
                size = self.part_of(name, parameter).size
                if size:
                    yield name, self.zeroed.get_local_fp32_grad_for_param(parameter).view(-1)[:size]
            elif parameter._hp_mapping is not None:
                yield name, parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)

    def part_of(self, name: str, parameter: Any) -> Held:
        """ZeRO-3 cuts every parameter into equal parts, the last of them padded."""
        group, offset, size = self.zeroed.grad_position[self.zeroed.get_param_id(parameter)]
        start = size * self.ranks.rank
        size = max(0, min(size, math.prod(self.shapes[name]) - start))
        return Held(start, size, self.zeroed.fp32_partitioned_groups_flat[group], offset)

    def held(self) -> Iterator[tuple[str, Held]]:
        """What this rank holds of the master weights, at stages 1 to 3."""
        for name, parameter in self.named:
            if self.zero == 3:
                held = self.part_of(name, parameter)
                if held.size:
                    yield name, held
            elif self.zero and parameter._hp_mapping is not None:
                found = parameter._hp_mapping
                flat = self.zeroed.single_partition_of_fp32_groups[found.param_group_index]
                address = found.lp_fragment_address
                yield name, Held(address.start, address.numel, flat, found.hp_fragment_address.start)

    def pieces(self) -> Iterator[Piece]:
        if not self.zero:
            yield from pieces_of(self.model, self.optimizer, self.ranks.rank, self.ranks.size)
        for name, held in self.held():
            shape, flat = self.shapes[name], held.flat
            yield Piece(MODEL, name, shape, flat.dtype, held.start, held.of(flat))
            state = self.optimizer.state.get(flat, {})
            for key, value in sorted(state.items()):
                if key in MOMENTS:
                    yield Piece(OPTIMIZER, f"{name}/{key}", shape, value.dtype, held.start, held.of(value))
                elif held.start == 0:  # the number of updates: of the whole parameter, from whoever holds its beginning
                    yield Piece(OPTIMIZER, f"{name}/{key}", (), value.dtype, 0, value.detach().view(1))

    @torch.no_grad()
    def load(self, stored: Stored) -> None:
        if not self.zero:
            load_pieces(self.model, self.optimizer, stored)
            return
        names = set(stored.names(OPTIMIZER))
        self.optimizer.state.clear()
        for name, held in self.held():
            held.of(held.flat).copy_(stored.read(MODEL, name, held.start, held.size))
            if f"{name}/step" in names:
                if held.flat not in self.optimizer.state:
                    step = stored.tensor(OPTIMIZER, f"{name}/step")
                    fresh = {key: torch.zeros_like(held.flat, requires_grad=False) for key in MOMENTS}
                    self.optimizer.state[held.flat] = {"step": step} | fresh
                for key in MOMENTS:
                    values = stored.read(OPTIMIZER, f"{name}/{key}", held.start, held.size)
                    held.of(self.optimizer.state[held.flat][key]).copy_(values)
        self.publish()

    def publish(self) -> None:
        """Make the weights that forwards use of the masters."""
        if self.zero < 3:
            self.zeroed.update_lp_params()
            for group in range(len(self.zeroed.bit16_groups)):
                self.zeroed._update_model_bit16_weights(group)
            return
        self.zeroed._partition_all_parameters()
        for group in range(len(self.zeroed.fp16_groups)):
            self.zeroed._reassign_or_swap_out_partitioned_parameters(group)
        if whole := self.zeroed.persistent_parameters:
            whole[0].all_gather(whole)


@contextmanager
def by_parameter() -> Iterator[None]:
    """A block's weights are gathered at once and let go at once, as those of DeepSpeed's leaf modules: no hook inside a
    block, which compiled code would stumble over. But its gradients are reduced parameter by parameter: DeepSpeed does
    it after the backward of a leaf, which of a looped block ends before its gradients are whole."""
    from deepspeed.runtime.zero import stage3

    real = stage3.z3_leaf_parameter
    stage3.z3_leaf_parameter = lambda parameter: False
    try:
        yield
    finally:
        stage3.z3_leaf_parameter = real


def import_deepspeed(ranks: Ranks) -> Any:
    """The library; it wants a process group of one process, too."""
    os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)
    os.environ.setdefault("LOCAL_RANK", str(ranks.device.index or 0))  # of one process, which no launcher started
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError as error:
        raise IqcError(f"no DeepSpeed: {error}", remedy="pip install 'iqc[deepspeed]', or --engine local") from None
    logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")  # of its calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a compiler's minutes, for what gloo does
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return deepspeed
