"""Long-context upsampling: long samples more often, the mixture of sources as it was.

Per-source length upsampling (Fu et al. 2024, "Data Engineering for Scaling Language Models to 128K Context", arXiv
2402.10171): to take more long documents wherever they come from shifts the mixture towards books and code; the best of
their mixtures raises the share of long documents within each source and leaves each source its share of the tokens.

Here, of the tokens of each source in a window: those of samples of at least `length` tokens get `factor` times the
weight of the others, and all weights are scaled so that the source has as many tokens as before. A long sample so comes
up to `factor` times, a short one at most once. A weight of 2.3 is two copies, and a third with probability 0.3, drawn
from (seed, "pack", id) alone. Copies are samples of their own, `ID~1`, `ID~2`, ... A short sample that is not drawn is
dropped by the rule `thinned`, with what it drew and the weight.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from iqc.errors import UsageError
from iqc.streams.stage import Dropped, rng
from iqc.tokens.pack import WINDOW_SAMPLES, WINDOW_TOKENS, Encoded


@dataclass(slots=True)
class Upsampling:
    """`length` in tokens; `factor` >= 1. Counts what it did."""

    length: int
    factor: float
    seed: int = 0
    window: int = WINDOW_SAMPLES
    long: int = 0  # samples of at least that length
    copies: int = 0  # made of them, beyond the first

    def __post_init__(self) -> None:
        if self.length < 1 or not 1 <= self.factor <= 1000 or self.window < 1:
            raise UsageError(
                f"cannot upsample samples of {self.length} tokens by {self.factor}",
                remedy="a length of at least 1 token, a factor from 1 to 1000",
            )

    def __call__(self, samples: Iterable[Encoded]) -> Iterator[Encoded | Dropped]:
        """The samples in their order, each as often as drawn. A window is as many samples as are packed together, and
        is held in memory beside them: the memory of packing once more."""
        window: list[Encoded] = []
        tokens = 0
        for sample in samples:
            window.append(sample)
            tokens += sample.row.tokens.size
            if len(window) >= self.window or tokens >= WINDOW_TOKENS:
                yield from self._drawn(window)
                window, tokens = [], 0
        yield from self._drawn(window)

    def _drawn(self, window: list[Encoded]) -> Iterator[Encoded | Dropped]:
        tokens: dict[str | None, list[int]] = {}  # of a source: in short samples, in long ones
        for sample in window:
            tokens.setdefault(sample.source, [0, 0])[self._is_long(sample)] += sample.row.tokens.size
        for sample in window:
            short, long = tokens[sample.source]
            weight = (short + long) / (short + self.factor * long) * (self.factor if self._is_long(sample) else 1)
            name = sample.row.ids[0]
            draw = rng(self.seed, "pack", name).random()
            count = int(weight) + (draw < weight % 1)
            self.long += self._is_long(sample)
            if not count:
                yield Dropped({"id": name, "source": sample.source}, "thinned", draw, weight)
                continue
            self.copies += count - 1
            yield sample
            for number in range(1, count):
                ids = [f"{name}~{number}" for name in sample.row.ids]
                yield replace(sample, row=replace(sample.row, ids=ids))

    def _is_long(self, sample: Encoded) -> bool:
        return sample.row.tokens.size >= self.length
