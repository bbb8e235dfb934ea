"""What must be the same for a continuation to give the same bits, and the mode in which a GPU gives them."""

import os
import platform
from importlib.metadata import version

import torch

from iqc import __version__
from iqc.streams.lineage import differences

# Switches of libraries that choose other kernels, or another order of sums.
SWITCHES = (
    "IQC_ATTENTION", "IQC_COMPILE", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NCCL_PROTO", "NVIDIA_TF32_OVERRIDE",
    "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY",
)  # fmt: skip
LATER = ("instructions", "cuda", "triton", "cudnn", "nccl")  # not recorded from the first


def deterministic() -> None:
    """The same bits from the same work on one kind of GPU. Before the first use of the device.

    cuBLAS needs a workspace of its own for each stream (its manual, "Results reproducibility"), NCCL a fixed order of
    sums, torch.compile no choice of kernels by the clock. An operation without a deterministic form raises.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    torch.use_deterministic_algorithms(True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  (nothing reads it unwritten)
    import torch._inductor.config as inductor

    inductor.deterministic = True


def environment() -> dict:
    """Versions, kind of device, threads, switches."""
    found: dict = {"iqc": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "triton": version("triton")}
        found |= {"cudnn": torch.backends.cudnn.version(), "nccl": list(torch.cuda.nccl.version())}
    else:
        found |= {"device": "cpu", "instructions": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}
    if torch.are_deterministic_algorithms_enabled():
        found["deterministic"] = True
    return found | {name: os.environ[name] for name in SWITCHES if name in os.environ}


def drift(recorded: dict, now: dict) -> list[str]:
    """What differs from a checkpoint's record, as `name: old, now new`. What older versions did not record is taken as
    it is."""
    unknown = {name: now[name] for name in LATER if name in now}
    return differences(unknown | {"ranks": 1} | recorded, now)


def repeatable() -> bool:
    """Whether the same work gives the same bits here: on a CPU always, on a GPU when it is told to."""
    return not torch.cuda.is_available() or torch.are_deterministic_algorithms_enabled()
