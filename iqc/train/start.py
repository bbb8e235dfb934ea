"""What a run starts from: weights, tokenizer and rows, checked against each other before the first update."""

import math
from collections.abc import Iterator
from pathlib import Path

from iqc.errors import IqcError, UsageError
from iqc.model.checkpoint import load_config, load_model
from iqc.model.config import ModelConfig, extend_context, preset
from iqc.model.decoder import Decoder, Recompute
from iqc.model.fold import fold, looped
from iqc.streams.lineage import Input
from iqc.tokens.dataset import TRIE
from iqc.tokens.loader import Limits
from iqc.tokens.special import EOS, PAD
from iqc.tokens.tokenizer import Tokenizer
from iqc.train.run import find_checkpoint, stage_of
from iqc.train.settings import TrainSettings
from iqc.train.stages import TrainingStage


def check_numbers(settings: TrainSettings) -> Recompute:
    """UsageError for passes, a decay and recompute that cannot be. Returns the last."""
    if not 0 <= settings.epochs < math.inf:
        raise UsageError(f"--epochs {settings.epochs}", remedy="a number of passes over the rows, 0 or more")
    if not 0 <= settings.ema < 1:
        raise UsageError(f"--ema {settings.ema:g}", remedy="a decay from 0 to below 1, such as 0.999")
    try:
        return Recompute.parse(settings.recompute)
    except ValueError as error:
        raise UsageError(str(error), remedy="--recompute mlp, or block:2,mlp:10, or block,tile:8192") from None


def row_length(settings: TrainSettings, stage: TrainingStage, config: ModelConfig) -> int:
    """Tokens a row: what was asked for, or the smaller of the stage's and the model's."""
    context = settings.context or min(stage.context, config.max_position_embeddings)
    if context > config.max_position_embeddings:
        raise IqcError(
            f"a context of {context}",
            remedy=f"the model was made for {config.max_position_embeddings} tokens; --yarn stretches that of --from",
        )
    return context


def starting_config(settings: TrainSettings, stage: TrainingStage) -> tuple[ModelConfig, Path | None]:
    """The shape of what is trained, and the checkpoint that the stage starts from; None: from fresh weights."""
    if settings.start is None:
        if settings.yarn or stage.yarn:
            raise UsageError("--yarn stretches a trained model", remedy="--from the run or checkpoint to start from")
        if settings.loop:
            raise UsageError("--loop folds a trained model", remedy="--from a dense one, or --model nano-loop")
        if stage.starts_from:
            raise UsageError(
                f"stage {stage.name} starts from a checkpoint", remedy=f"--from one of {', '.join(stage.starts_from)}"
            )
        if settings.model is None:
            raise UsageError("no model", remedy="--model nano-loop, or another preset")
        return preset(settings.model), None
    checkpoint = find_checkpoint(settings.start)
    made_by = stage_of(checkpoint)
    if made_by is not None and made_by not in stage.allowed():
        raise IqcError(
            f"a checkpoint of stage {made_by}, for stage {stage.name}",
            where=str(checkpoint),
            remedy=f"{stage.name} starts from {' or '.join(stage.starts_from) or 'fresh weights'}",
        )
    config = load_config(checkpoint)
    if settings.loop:
        config = looped(config)
    if yarn := settings.yarn or stage.yarn:
        extend_context(config, yarn)
    return config, checkpoint


def starting_model(
    settings: TrainSettings, stage: TrainingStage, tokenizer: Tokenizer, config: ModelConfig, checkpoint: Path | None
) -> Decoder:
    """Fresh weights, or those of the checkpoint that the stage starts from; the last two as of `starting_config`."""
    if checkpoint is None:
        check_vocabulary(config, tokenizer, f"iqc tokenizer train --vocab-size {config.vocab_size}")
        config.eos_token_id = [tokenizer.control[EOS], tokenizer.control[PAD]]
        config.pad_token_id = tokenizer.control[PAD]
        return Decoder(config, seed=settings.seed)
    check_vocabulary(config, tokenizer, "use the tokenizer of the checkpoint")
    model = load_model(checkpoint)
    if settings.loop:
        model = fold(model)
    if yarn := settings.yarn or stage.yarn:
        extend_context(model.config, yarn)
    return model


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, remedy: str) -> None:
    if config.vocab_size != tokenizer.vocab_size:
        raise IqcError(
            f"a tokenizer of {tokenizer.vocab_size} tokens for a model of {config.vocab_size}", remedy=remedy
        )


def check_rows(inputs: list[Input], limits: Limits) -> None:
    """What lineage tells of the rows before one is read: they must fit, and there must be something to learn.

    Rows of which it tells nothing are checked when they are read.
    """
    packed = [node["counts"] for item in inputs for node in packings(item)]
    kinds = {kind for counts in packed for kind, tokens in counts.get("by_kind", {}).items() if tokens}
    if limits.pairs and kinds - {"preference"}:
        raise IqcError(f"rows of {', '.join(sorted(kinds))} for a loss of pairs", remedy="pack preference pairs alone")
    if not limits.pairs and "preference" in kinds:
        raise IqcError("rows with preference pairs", remedy="--stage dpo: other stages would learn what was rejected")
    for counts in packed:
        if counts.get("longest", 0) > limits.context:
            raise IqcError(
                f"rows of {counts['longest']} tokens for a context of {limits.context}",
                remedy=f"iqc pack --context {limits.context}",
            )
        if counts.get("tries"):
            raise IqcError("rows with tries, which are not trained on", remedy=TRIE)
    if packed and all(counts.get("learnt") == 0 for counts in packed):
        raise IqcError("rows without a token to learn", remedy="look at the loss of the records that were packed")


def packings(item: Input) -> Iterator[dict]:
    """The stages that packed the rows of an input, as its lineage has them: those of a mixture are several.

    What came before a packing is left out: a model that wrote the text may have had another tokenizer.
    """
    stages = item.lineage["stages"] if item.lineage else {}
    names = [item.lineage["stage"]] if item.lineage else []
    for name in names:
        if stages[name]["command"] == "pack":
            yield stages[name]
        else:
            before = [source["stage"] for source in stages[name]["inputs"] if "stage" in source]
            names += [stage for stage in before if stage not in names]


def check_tokenizer(inputs: list[Input], digest: str) -> None:
    """The sequences must have been packed with this tokenizer, where their lineage tells."""
    for node in (node for item in inputs for node in packings(item)):
        packed_with = node["options"].get("tokenizer", digest)
        if packed_with != digest:
            raise IqcError(
                f"sequences packed with tokenizer {packed_with[:12]}, the model's is {digest[:12]}",
                remedy="pack them again with the tokenizer of the model",
            )
