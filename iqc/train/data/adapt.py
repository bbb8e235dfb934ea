"""How the weights of a mixture follow the losses on held-out rows, while the run goes on.

The rule of dynamic batch loading (Sheared LLaMA, Xia et al. 2023, arXiv 2310.06694, algorithm 1): at every measurement

    w_i  <-  w_i exp(max(loss_i - reference_i, 0)),  to their former sum

so that a source whose held-out loss is further above its reference gets more of the next rows. References are losses to
be reached, those of a model that has them, or of a scaling law; or those of the checkpoint that the run starts from:
then a source gets more as it is being forgotten, and nothing changes while none is. DoReMi (Xie et al. 2023, arXiv
2305.10429) has the same update with the excess loss of training rows. Ours are the bounds: no share leaves them, and
what is cut off there is not remembered.
"""

import math
from collections.abc import Mapping

DECIMALS = 4  # of a loss, in nats: the last bits, which the number of ranks changes, decide nothing


def reweighted(
    shares: Mapping[str, float],
    losses: Mapping[str, float],
    reference: Mapping[str, float],
    least: float,
    most: float,
) -> dict[str, float]:
    """The shares after a measurement, with the same sum; each from `least` to `most`, which must be possible."""
    whole = sum(shares.values())
    excess = {name: max(round(losses[name], DECIMALS) - round(reference[name], DECIMALS), 0.0) for name in shares}
    largest = max(excess.values())  # taken off all: exp stays a number, and the division below takes it off anyway
    raised = {name: share * math.exp(excess[name] - largest) for name, share in shares.items()}
    total = sum(raised.values())
    return bounded({name: share * whole / total for name, share in raised.items()}, least, most)


def bounded(shares: Mapping[str, float], least: float, most: float) -> dict[str, float]:
    """Those of the same sum and from `least` to `most` that are, between these, in the same proportions."""
    whole = sum(shares.values())
    low, high = 0.0, max(whole, most) / min(shares.values())  # the factor, at which all are at their most
    for _ in range(200):
        factor = (low + high) / 2
        total = sum(min(max(share * factor, least), most) for share in shares.values())
        low, high = (factor, high) if total < whole else (low, factor)
    return {name: min(max(share * high, least), most) for name, share in shares.items()}
