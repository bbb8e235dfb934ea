"""`iqc mix --law`: its own options, what they ask for, and where the answers go."""

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqc.errors import UsageError

if TYPE_CHECKING:
    from iqc.streams.runner import Settings
    from iqc.tokens.law.stages import Asked


class Law(StrEnum):
    fit = "fit"
    predict = "predict"
    allocate = "allocate"


class Synergy(StrEnum):
    published = "published"
    ones = "ones"


LawOption = Annotated[
    Law | None,
    typer.Option("--law", help="No mixture: fit the scaling law of languages to runs, predict losses, or find shares."),
]
LawFile = Annotated[
    str | None, typer.Option("--law-file", metavar="FILE", help="A law; without one, what is published and --set.")
]
Given = Annotated[
    str | None,
    typer.Option("--set", metavar="NAME=X,...", help="Numbers of your own: A, B, gamma, the units N0 and D0."),
]
Free = Annotated[
    str | None,
    typer.Option("--free", metavar="NAME,...", help="What fit finds, of A, B, gamma, tau, alpha_N, alpha_D, L_inf."),
]
SynergyOption = Annotated[
    Synergy | None, typer.Option("--synergy", help="tau of a fit: the published table, or 1 for any two languages.")
]
Draws = Annotated[
    int | None, typer.Option("--draws", metavar="N", min=0, max=100_000, help="Of the bootstrap of a fit; else 200.")
]
Huber = Annotated[
    float | None,
    typer.Option("--huber", metavar="X", min=1e-6, help="Log error from which a run counts linearly; else 0.001."),
]
ModelSize = Annotated[
    str | None, typer.Option("--model-size", metavar="N", help="Parameters, such as 1.3B; its tokens are --total.")
]
Least = Annotated[
    str | None,
    typer.Option("--least", metavar="LANG=P,...", help="Least shares of an allocation; * is all the others."),
]
Most = Annotated[str | None, typer.Option("--most", metavar="LANG=P,...", help="Largest shares of an allocation.")]
Available = Annotated[
    str | None,
    typer.Option("--available", metavar="LANG=N,...", help="Tokens there are, each read --max-epochs times at most."),
]
Reducible = Annotated[
    bool, typer.Option("--reducible", help="Allocate for L - L_inf: no language gains by being easy to predict.")
]
Published = Annotated[bool, typer.Option("--published", help="Show the published allocation, which is a table.")]


OF_LAW = ("law_file", "set")
OF_POINT = (*OF_LAW, "model_size", "total", "languages")
OF_SHARES = (*OF_LAW, "model_size", "total", "max_epochs", "least", "most", "available", "reducible", "published")
GOES_WITH = {Law.fit: (*OF_LAW, "free", "synergy", "draws", "huber"), Law.predict: OF_POINT, Law.allocate: OF_SHARES}


def run(law: Law, asked: "Asked", settings: "Settings") -> None:
    """Tables go to standard output where no records do, else to standard error."""
    from iqc.streams.writer import write_file
    from iqc.tokens.law.stages import allocation, fit_stage, predict_point, predict_stage

    pointed = asked.size is not None or asked.budget is not None or bool(asked.shares)
    if settings.inputs and (law is Law.allocate or (law is Law.predict and pointed)):
        raise UsageError(f"{settings.inputs[0]}: nothing is read here", remedy="a law is --law-file FILE")
    if law is Law.allocate:
        text, recipe = allocation(asked)
        if settings.output not in (None, "-"):
            write_file(str(settings.output), recipe.encode())
        print(text)
    elif law is Law.predict and pointed:
        print(predict_point(asked))
    else:
        said = (fit_stage if law is Law.fit else predict_stage)(asked, settings)
        if said and not settings.quiet:
            print(said, file=sys.stderr)


def asked(law: Law, seed: int, options: dict[str, Any]) -> "Asked":
    """The options by name, as they were given (None: not), to what the law is asked for."""
    from iqc.tokens.law.stages import Asked

    found = {name: value for name, value in options.items() if value is not None}
    for name in found:
        if name not in GOES_WITH[law]:
            remedy = f"with it go {', '.join('--' + known.replace('_', '-') for known in GOES_WITH[law])}"
            raise UsageError(f"--{name.replace('_', '-')} does not go with --law {law.value}", remedy=remedy)
    names = {"set": "given", "model_size": "size", "total": "budget", "languages": "shares"}
    found = {names.get(name, name): value for name, value in found.items()}
    for name in ("given", "shares", "least", "most", "available"):
        if name in found:
            read = amount if name == "available" else number
            found[name] = {key: read(key, text) for key, text in parts(found[name])}
    for name, option in (("size", "--model-size"), ("budget", "--total")):
        if name in found:
            found[name] = amount(option, found[name])
    if "free" in found:
        found["free"] = tuple(name.strip() for name in found["free"].split(","))
    if "synergy" in found:
        found["synergy"] = found["synergy"].value
    return Asked(seed=seed, **found)


def parts(text: str) -> list[tuple[str, str]]:
    """`A=1,B=2` to its pairs."""
    found = []
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not name.strip() or not value.strip():
            raise UsageError(f"{part!r} is no NAME=X", remedy="name each number: go=0.2,rust=0.1")
        found.append((name.strip(), value.strip()))
    return found


def amount(name: str, text: str) -> float:
    """1e9, 500k or 1.5B."""
    from iqc.tokens.mix.recipe import amount_of

    try:
        value = float(text)
    except ValueError:
        try:
            value = float(amount_of(text))
        except UsageError as error:
            raise UsageError(f"{name}: {error.what}", remedy=error.remedy) from None
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} {text}", remedy="an amount above 0: 500k, 1.5B, 2e9")
    return value


def number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{name}={text}: no number", remedy=f"such as {name}=0.5") from None
