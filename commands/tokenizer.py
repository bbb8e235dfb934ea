"""`iqc tokenizer`: train, show and check a byte-level BPE tokenizer."""

from pathlib import Path
from typing import Annotated

import typer

from iqc.options import INT32, Inputs, Quiet, command_app, config_options

app = command_app(help="Train, show and check a byte-level BPE tokenizer.")

Directory = Annotated[str, typer.Argument(metavar="DIR", help="What `iqc tokenizer train` wrote.")]


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
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", min=2, max=INT32, help="The longest input of the model, in tokens."),
    ] = None,
    limit_mib: Annotated[
        int, typer.Option("--limit-mib", metavar="N", min=1, max=INT32, help="MiB of text to learn from, at most.")
    ] = 1024,
    quiet: Quiet = False,
) -> None:
    """Train a byte-level BPE on the text of records, and write it as Transformers loads it."""
    from iqc.streams.runner import StreamInput, read_records
    from iqc.tokens import tokenizer
    from iqc.tokens.stages import training_text

    made = tokenizer.train(training_text(read_records(StreamInput(inputs or [])), limit_mib << 20), vocab_size)
    made.save(Path(output), context=context)
    if not quiet:
        typer.echo(f"iqc tokenizer: {made.vocab_size} tokens in {output}", err=True)


@app.command()
def show(
    directory: Directory,
    text: Annotated[list[str] | None, typer.Argument(help="Text to encode.")] = None,
) -> None:
    """Show a tokenizer's size, digest and control tokens; of a text, its tokens."""
    from iqc.tokens import tokenizer

    loaded = tokenizer.load(Path(directory))
    if text:
        for ids in loaded.encode_ordinary_batch(text):
            print(" ".join(f"{token}:{loaded.decode([token])!r}" for token in ids))
        return
    print(f"tokens   {loaded.vocab_size}\ndigest   sha256:{loaded.digest}")
    for token, number in loaded.control.items():
        print(f"{number:>8} {token}")


@app.command()
@config_options
def check(directory: Directory, inputs: Inputs = None) -> None:
    """Encode and decode the text of records; say bytes a token, and fail where the round trip is not exact."""
    from iqc.errors import IqcError
    from iqc.streams.runner import StreamInput, read_records
    from iqc.tokens import tokenizer
    from iqc.tokens.stages import training_text

    loaded = tokenizer.load(Path(directory))
    size = tokens = 0
    for text in training_text(read_records(StreamInput(inputs or [])), 1 << 62):
        ids = loaded.encode_ordinary(text)
        if loaded.decode(ids) != text:
            raise IqcError(f"the round trip of {text[:60]!r} is not exact", remedy="report this as a fault of iqc")
        size, tokens = size + len(text.encode()), tokens + len(ids)
    print(f"{size:,} bytes, {tokens:,} tokens, {size / max(1, tokens):.3f} bytes a token; every round trip exact")
