"""`iqc tokenizer`: train, show and check a byte-level BPE tokenizer."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from iqc.options import INT32, Inputs, Quiet, command_app, config_options

app = command_app(help="Train, show and check a byte-level BPE tokenizer.")

Directory = Annotated[str, typer.Argument(metavar="DIR", help="What `iqc tokenizer train` wrote, or a tokenizer.json.")]


class Digits(StrEnum):
    one = "one"
    three = "three"
    run = "run"


class Indent(StrEnum):
    apart = "apart"
    joined = "joined"


@app.command()
@config_options
def train(
    inputs: Inputs = None,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="Where the tokenizer goes.")
    ] = "tokenizer",
    vocab_size: Annotated[
        int,
        typer.Option("--vocab-size", metavar="N", min=300, max=2**24, help="Tokens in all, control tokens included."),
    ] = 76_800,
    digits: Annotated[Digits, typer.Option("--digits", help="Digits a token: one, up to three, a run.")] = Digits.one,
    indent: Annotated[
        Indent, typer.Option("--indent", help="Indentation apart from the line end before it, or joined to it.")
    ] = Indent.apart,
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", min=2, max=INT32, help="The longest input of the model, in tokens."),
    ] = None,
    limit_mib: Annotated[
        int, typer.Option("--limit-mib", metavar="N", min=1, max=INT32, help="MiB of text to learn from, at most.")
    ] = 1024,
    language_mib: Annotated[
        int | None,
        typer.Option("--language-mib", metavar="N", min=1, max=INT32, help="MiB of text of one language, at most."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a byte-level BPE on the text of records, and write it as Transformers loads it."""
    from iqc.streams.runner import StreamInput, read_records
    from iqc.tokens import tokenizer
    from iqc.tokens.split import Split
    from iqc.tokens.texts import Texts, lineage

    tokenizer.check_writable(Path(output))
    source = StreamInput(inputs or [])
    limits = {"limit_mib": limit_mib, "language_mib": language_mib}
    texts = Texts(read_records(source), limit_mib << 20, (language_mib or INT32) << 20)
    made = tokenizer.train(texts, vocab_size, Split(digits.value, indent.value))
    made.save(Path(output), context=context, lineage=lineage(made, texts, source.results(), limits))
    if not quiet:
        learnt = f"{texts.bytes.total() / 1e6:,.1f} MB of {len(texts.bytes)} languages in {texts.records:,} records"
        typer.echo(f"iqc tokenizer: {made.vocab_size} tokens from {learnt}, in {output}", err=True)


@app.command()
def show(
    directory: Directory,
    text: Annotated[list[str] | None, typer.Argument(help="Text to encode.")] = None,
) -> None:
    """Show a tokenizer's size, engine, split, digest and control tokens; of a text, its tokens."""
    from iqc.tokens import tokenizer

    loaded = tokenizer.load(Path(directory))
    for part in text or []:
        print(" ".join(f"{token}:{loaded.shown(token)}" for token in loaded.encode_ordinary(part)))
    if not text:
        print("\n".join(loaded.about()))


@app.command()
@config_options
def check(
    directory: Directory,
    inputs: Inputs = None,
    compare_mib: Annotated[
        int,
        typer.Option("--compare-mib", metavar="N", min=0, max=INT32, help="MiB that both engines encode."),
    ] = 16,
) -> None:
    """Encode and decode the text of records: bytes a token by language, and an error where a round trip is not exact,
    where the engines give different ids, or where Transformers loads another tokenizer."""
    from iqc.streams.runner import StreamInput, read_records
    from iqc.tokens import check, tokenizer
    from iqc.tokens.texts import Texts

    loaded = tokenizer.load(Path(directory))
    found = check.measure(loaded, Texts(read_records(StreamInput(inputs or []))), compare_mib << 20)
    print(f"{'language':<12} {'bytes':>15} {'tokens':>15} {'bytes a token':>14}")
    for language, size, tokens, rate in found.rows():
        print(f"{language:<12} {size:>15,} {tokens:>15,} {rate:>14.3f}")
    print("every round trip exact")
    if loaded.engine != "tokenizers":
        print(f"{loaded.engine} and the tokenizers library: the same ids on {found.compared:,} bytes")
    print(f"Transformers: {check.transformers_parity(loaded, Path(directory))}")
