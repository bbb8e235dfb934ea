"""An exponential moving average of the weights: a second set, smoother than the last one, saved beside it.

    average <- d average + (1 - d) weights,     d = min(decay, (1 + k) / (10 + k)) after update k (from 1)

The smaller d of the first updates lets go of the starting weights. The average is of what an engine hands over for a
checkpoint, so each rank keeps that of its own share, whatever the engine; it is in float32, because in bfloat16 a step
of 1 - d would be rounded away. A checkpoint has it as a model directory of its own, `ema/`.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from iqc.train.checkpoints import MODEL, Piece, Stored

FILE = "ema/model"


class Ema:
    """`decay` in [0, 1). `pieces`: what the engine hands over before the first update."""

    def __init__(self, decay: float, pieces: Iterable[Piece]) -> None:
        self.decay = decay
        self.kept: dict[tuple[str, int], Piece] = {}  # by name and start
        for piece in weights_in(pieces):
            values = piece.values.detach().to(torch.float32, copy=True)
            self.kept[piece.name, piece.start] = Piece(
                FILE, piece.name, piece.shape, torch.float32, piece.start, values
            )

    @torch.no_grad()
    def update(self, pieces: Iterable[Piece], step: int) -> None:
        """After update number `step`, from 1. What was saved last must have been copied (Run.copied)."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for piece in weights_in(pieces):
            averages.append(self.kept[piece.name, piece.start].values)
            values.append(piece.values.detach().float())
        if averages:
            torch._foreach_lerp_(averages, values, 1 - min(self.decay, (1 + step) / (10 + step)))

    def pieces(self) -> Iterator[Piece]:
        yield from self.kept.values()

    def load(self, stored: Stored) -> None:
        """Take back what `pieces` gave, of whatever number of ranks."""
        for piece in self.kept.values():
            piece.values.copy_(stored.read(FILE, piece.name, piece.start, piece.values.numel()))


def weights_in(pieces: Iterable[Piece]) -> Iterator[Piece]:
    return (piece for piece in pieces if piece.file == MODEL)
