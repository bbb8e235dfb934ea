"""What a sample is before it is encoded: stretches of ordinary text and control tokens, each with its loss weight."""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Segment:
    """`value` is text to be encoded as ordinary text, or the name of one control token. `weight` is the weight of the
    loss of predicting each of its tokens: 0 for what the model only reads."""

    value: str
    is_control: bool
    weight: float


def text(value: str, weight: float = 1.0) -> Segment:
    return Segment(value, False, weight)


def control(token: str, weight: float = 1.0) -> Segment:
    return Segment(token, True, weight)


def joined(segments: list[Segment]) -> list[Segment]:
    """The same string with adjacent texts of one weight made one: BPE does not encode parts as it encodes the whole."""
    out: list[Segment] = []
    for segment in segments:
        if out and not segment.is_control and not out[-1].is_control and out[-1].weight == segment.weight:
            out[-1] = text(out[-1].value + segment.value, segment.weight)
        else:
            out.append(segment)
    return out
