"""The sources of a run: its training rows by name, its held-out rows by name, and what of them goes together.

An input is [NAME=]PATH, a source as in `iqc mix`: all have names, or none. Inputs without names are one set.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from iqc.errors import IqcError, UsageError
from iqc.streams.lineage import Input
from iqc.tokens.dataset import Dataset, open_dataset
from iqc.tokens.loader import Limits, in_order
from iqc.tokens.mix.recipe import name_sources
from iqc.train.data.curriculum import MixtureSettings, recipe_of
from iqc.train.start import check_rows, check_tokenizer, packings


@dataclass(slots=True)
class Sources:
    """The training rows, those of all sources in one set. A context manager."""

    names: tuple[str, ...]  # sorted; one, "", where the inputs have no names
    dataset: Dataset
    inputs: list[Input]  # one a source; of a set without names all that were given

    @property
    def named(self) -> bool:
        return self.names != ("",)

    @property
    def rows(self) -> dict[str, int]:
        sizes = self.dataset.sizes if self.named else [len(self.dataset)]
        return dict(zip(self.names, sizes))

    def __enter__(self) -> "Sources":
        return self

    def __exit__(self, *error: object) -> None:
        self.dataset.__exit__(*error)

    def asked(self) -> list[str | None] | dict[str, str | None]:
        """What was read, by its digests."""
        digests = [item.digest for item in self.inputs]
        return dict(zip(self.names, digests)) if self.named else digests

    def check(self, limits: Limits, tokenizer: str) -> None:
        """What lineage tells before a row is read: `tokenizer`, a digest, packed them; they fit; there is something to
        learn; and the sources were packed for one context, since the rows are what is shared out."""
        contexts: dict[int, str] = {}
        for name, inputs in zip(self.names, [[item] for item in self.inputs] if self.named else [self.inputs]):
            try:
                check_tokenizer(inputs, tokenizer)
                check_rows(inputs, limits)
            except IqcError as error:
                raise IqcError(error.what, where=f"source {name}" if name else None, remedy=error.remedy) from None
            for node in (node for item in inputs for node in packings(item)):
                if "context" in node["options"]:
                    contexts.setdefault(node["options"]["context"], name)
        if self.named and len(contexts) > 1:
            (one, first), (other, second) = list(contexts.items())[:2]
            raise IqcError(
                f"source {first} was packed for rows of {one} tokens, source {second} for {other}",
                remedy=f"pack both alike: iqc pack --context {max(one, other)}",
            )


def by_name(inputs: list[str]) -> dict[str, str]:
    """Paths by name, where inputs are given as NAME=PATH; else none. UsageError: some are, and some are not."""
    named = ["=" in given and not Path(given).exists() for given in inputs]
    if not any(named):
        return {}
    if not all(named):
        plain = inputs[named.index(False)]
        raise UsageError(f"{plain} has no name, other inputs have one", remedy=f"NAME={plain}")
    return name_sources(inputs)


def open_sources(inputs: list[str]) -> Sources:
    """Files, directories of shards and pipes, each [NAME=]PATH; names for all or none. IqcError: a source is empty."""
    paths = by_name(inputs)
    names = tuple(sorted(paths))
    dataset, read = open_dataset([paths[name] for name in names] if names else inputs)
    for name, size, item in zip(names, dataset.sizes, read):
        item.label = name
        if not size:
            dataset.__exit__()
            raise IqcError(f"source {name} is empty", where=paths[name], remedy="leave it out")
    return Sources(names or ("",), dataset, read)


def open_held_out(
    inputs: list[str], limits: Limits, batch_rows: int, stack: ExitStack
) -> tuple[dict[str, Dataset], dict[str, str | None]]:
    """The held-out rows by name, "" where they are one set without a name, and the digest of each.

    All are read once, to find what is wrong with them.
    """
    paths = by_name(inputs)
    if len(inputs) > 1 and not paths:
        raise UsageError("several --valid without names", remedy="--valid NAME=FILE, for each")
    found, digests = {}, {}
    for name, path in sorted(paths.items()) if paths else [("", path) for path in inputs]:
        dataset, (item,) = open_dataset([path])
        found[name], digests[name] = stack.enter_context(dataset), item.digest
        if not any([batch.weights.any() for batch in in_order(dataset, limits, batch_rows)]):
            raise IqcError("held-out rows without a token to learn", where=path, remedy="give another --valid")
    return found, digests


def check_asked(
    asked: MixtureSettings, sources: Sources, held_out: Mapping[str, Dataset], steps: int, fresh: bool
) -> None:
    """That what is asked for goes together. `fresh`: the run starts from weights that have learnt nothing."""
    given = {"weight": asked.weights, "replay": asked.replay, "phase": asked.phases, "adapt": asked.adapt}
    for flag, value in given.items():
        if value and not sources.named:
            raise UsageError(f"--{flag} is of sources with names", remedy="name the inputs: NAME=FILE")
    if sources.named:
        recipe_of(asked, sources.rows)
    if asked.valid_every and not held_out:
        raise UsageError("--valid-every without held-out rows", remedy="--valid FILE, or --valid NAME=FILE for each")
    if not asked.adapt:
        if asked.reference:
            raise UsageError("--reference without --adapt", remedy="add --adapt, or leave it out")
        return
    if asked.phases:
        raise UsageError("--adapt and --phase both set the weights", remedy="leave one of them out")
    if not asked.valid_every:
        raise UsageError("--adapt without --valid-every", remedy="--valid-every 100: how often it is measured")
    if asked.valid_every >= steps > 0:
        raise UsageError(
            f"--adapt after {asked.valid_every} updates of {steps}", remedy="a smaller --valid-every, or more --steps"
        )
    adapted = [name for name in sources.names if name not in asked.replay]
    for name in adapted:
        if asked.weights.get(name, 1) == 0:
            raise UsageError(f"--adapt and --weight {name}=0", remedy="leave the source out")
        if name not in held_out:
            raise UsageError(f"--adapt: source {name} has no held-out rows", remedy=f"--valid {name}=FILE")
        if (asked.reference or fresh) and name not in asked.reference:
            raise UsageError(
                f"--adapt: source {name} has no loss to be reached", remedy=f"--reference {name}=X, in nats a token"
            )
    if unknown := [name for name in asked.reference if name not in adapted]:
        raise UsageError(f"--reference {unknown[0]}: no such source", remedy=f"sources are {', '.join(adapted)}")
    free = 1 - sum(asked.replay.values())
    if not 0 <= asked.least <= free / len(adapted) <= asked.most:
        raise UsageError(
            f"--least {asked.least:g} --most {asked.most:g}",
            remedy=f"{len(adapted)} sources share {free:g}: around {free / len(adapted):.3g} for each",
        )
