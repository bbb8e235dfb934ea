"""What `iqc train` is asked for."""

from dataclasses import dataclass, field

import torch

from iqc.train.data.curriculum import MixtureSettings

# Of weights, gradients and moments; and of the matrix products, where it is another (autocast).
PRECISIONS = {
    "fp32": (torch.float32, None),
    "bf16": (torch.float32, torch.bfloat16),
    "bf16-pure": (torch.bfloat16, None),
}

# Settings that a run may go on with other values of: how it is done, not what comes out.
# What a policy decided is in the run's events, and is kept.
INDECISIVE = (
    "save_every", "stages", "recompute", "deterministic", "tensorboard", "engine", "zero", "offload", "context_ranks",
    "audit_every", "on_mismatch", "on_spike", "on_nan", "on_stall",
)  # fmt: skip


@dataclass(slots=True)
class TrainSettings:
    """What `iqc train` is asked for. `steps` 0 means `epochs` passes over the rows."""

    stage: str
    model: str | None  # a preset, for a stage that starts from fresh weights
    start: str | None  # a checkpoint
    steps: int = 0
    epochs: float = 1.0
    batch_rows: int = 16
    micro_rows: int = 0  # rows at a time through the model; 0: all
    context: int = 0  # 0: the smaller of the stage's and the model's
    optimizer: str = "adamw"  # or muon
    rate: float = 0.0  # peak learning rate; 0: by width and optimiser
    save_every: int = 0  # updates between checkpoints; 0: only at the end
    seed: int = 0
    precision: str = ""  # one of PRECISIONS; "": bf16 on a GPU, fp32 otherwise
    recompute: str = "none"  # Recompute.parse
    loop: bool = False  # fold `start`, a dense model, into a looped one
    yarn: float = 0.0  # factor by which YaRN stretches the context of `start`; 0: as the stage does
    stages: str = ""  # a table of stages in place of stages.toml
    deterministic: bool = False  # a GPU, too, gives the same bits again
    tensorboard: str | None = None  # a directory for TensorBoard
    engine: str = "local"  # or deepspeed
    zero: int | None = None  # DeepSpeed's stage, 0 to 3; None: 1
    offload: str = "none"  # to the CPU, by DeepSpeed: optimizer, or all (weights too)
    context_ranks: int = 1  # that share each row
    audit_every: int = 0  # updates, of which one is computed twice and compared (iqc.train.audit); 0: no audit
    on_mismatch: str = "repeat"  # these four: one of iqc.train.audit.watch.POLICIES
    on_spike: str = "note"
    on_nan: str = "stop"
    on_stall: str = "note"  # or stop
    ema: float = 0.0  # decay of an average of the weights that is kept beside them; 0: none
    mixture: MixtureSettings = field(default_factory=MixtureSettings)  # of sources with names
