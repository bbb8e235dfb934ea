from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iqc.model.config import ModelConfig
from iqc.model.decoder import Decoder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Decoder]:
    """A small decoder with weights large enough for every path to matter: gates away from their initial value, spread
    over (0, 1). float64 unless told otherwise."""

    def make(loop_num: int = 2, window: int = 3, dtype: torch.dtype = torch.float64, **sizes: int) -> Decoder:
        shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6}
        shape |= {"num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 128}
        model = Decoder(ModelConfig(**(shape | sizes), loop_num=loop_num, loop_window_size=window)).to(dtype)
        g = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, p in model.named_parameters():
                wide = "gate_projections" in name
                p.copy_(
                    torch.randn(p.shape, generator=g, dtype=torch.float64) * (1.0 if wide else 0.3) + ("norm" in name)
                )
        return model

    return make


@pytest.fixture
def golden() -> Path:
    path = Path(__file__).resolve().parents[2] / "../shared/golden/loop-tiny"
    if not path.exists():
        pytest.skip("../shared/golden/loop-tiny is absent")
    return path
