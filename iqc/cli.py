"""The executable: a table of commands, loaded when they are called, and what their endings mean to the shell.

Exit status: 0 done; 1 failed (data, files, the run); 2 wrong usage; 130 interrupted; 141 the reader of the output left.
"""

import importlib
import io
import os
import shutil
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from iqc import __version__
from iqc.errors import ClosedPipe, IqcError, UsageError

COMMANDS = {  # in the order of the pipeline; the text is what `iqc -h` shows
    "crawl-clean": "Source trees and web archives to clean documents",
    "repos": "Repositories, their files in the order of their dependencies",
    "dedup": "Drop exact and near duplicates, each verified",
    "triplets": "Git histories to (old, patch, new) records",
    "fim": "Documents and repositories to fill-in-the-middle samples",
    "tasks": "Generate small programming tasks with tests",
    "tokenizer": "Train, show and check a byte-level BPE tokenizer",
    "mix": "Several streams to one by weights; the scaling law of languages",
    "pack": "Tokenise records and pack them into sequences",
    "model": "Look at models: presets, costs, log-probabilities",
    "train": "Train one stage of a model",
    "rl": "Train a model on tasks by the tests its programs pass",
    "generate": "Complete prompts with a model",
    "eval": "Benchmarks: prompts, scores, whole runs",
    "export": "Write a checkpoint in the layout others load",
    "head": "The first records of a stream, or all of them",
    "stats": "Counts, sizes, fields and lengths of a stream",
    "lineage": "Where a stream or a checkpoint comes from",
    "report": "One page about a run, from what its stages left",
    "doctor": "What this machine has and which parts work",
    "help": "The manual page of a command",
    "completion": "Print the completion script of a shell",
}

REMEDIES: dict[type[OSError], str] = {  # of an error that names a file
    FileNotFoundError: "check the path, or make its directory",
    FileExistsError: "remove it, or name another path",
    PermissionError: "name a path that this user may read or write, or change its mode",
    IsADirectoryError: "name a file, not a directory",
    NotADirectoryError: "name a directory, not a file",
}


class Commands(TyperGroup):
    """Knows the names; imports a command when it is called or completed."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for name, text in COMMANDS.items():
            self.add_command(TyperCommand(name, help=text, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple:
        if args and args[0] not in COMMANDS and (outside := shutil.which(f"iqc-{args[0]}")):
            _flush()
            os.execv(outside, [outside, *args[1:]])
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else None, rest


def load(name: str) -> Any:
    """The command of that name."""
    module = importlib.import_module("iqc.commands." + name.replace("-", "_"))
    command = typer.main.get_command(module.app)
    command.name = name
    _hide_variables(command)
    return command


def _hide_variables(command: Any) -> None:
    """Every option has an IQC_ variable; naming each on its line would double the help."""
    for param in command.params:
        param.show_envvar = False
    for child in getattr(command, "commands", {}).values():
        _hide_variables(child)


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"iqc {__version__}")
        raise typer.Exit()


@app.callback()
def _iqc(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """The making of a code language model, from crawl and git history to an evaluated checkpoint.

    Commands read and write JSON lines in zstd: pipe them. `iqc COMMAND -h` shows the options of one, `iqc help COMMAND`
    its manual page. A program named iqc-NAME on the PATH is a command, too.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def _ready_streams() -> None:
    """Make closed and narrow standard streams safe to use.

    A closed descriptor would be given to the next file that is opened, and what is printed would end in it. Of closed
    streams, sys.stdin and sys.stdout stay None, which tells that they are closed (print then does nothing); with a
    sys.stderr that is None, print would write to standard output.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # open until the end
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error escapes what its terminal cannot show, as it is
        sys.stdout.reconfigure(errors="replace")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def run(args: list[str]) -> int:
    """Run the command line; returns the exit status."""
    _ready_streams()
    name = next((arg for arg in args if not arg.startswith("-")), "")
    shown = f"iqc {name}" if name in COMMANDS else "iqc"
    try:
        if "_IQC_COMPLETE" in os.environ:  # Typer knows the shells only when it adds its own two options
            from typer.completion import completion_init

            completion_init()
        root = typer.main.get_command(app)
        status = root.main(args, prog_name="iqc", standalone_mode=False, auto_envvar_prefix="IQC")
        _flush()
        return status if isinstance(status, int) else 0
    except IqcError as error:
        place = f"{error.where}: " if error.where else ""
        print(f"{shown}: {place}{error.what}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except (ClosedPipe, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        return 141
    except KeyboardInterrupt:
        return 130
    except typer.TyperException as error:
        error.show(sys.stderr)  # type: ignore[attr-defined]  # all that Typer raises have it
        return error.exit_code
    except typer.Abort:
        return 130
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"{shown}: {place}{error.strerror or error}", file=sys.stderr)
        if error.filename and type(error) in REMEDIES:
            print(f"  {REMEDIES[type(error)]}", file=sys.stderr)
        return 1
    except (ImportError, MemoryError) as error:
        if os.environ.get("IQC_DEBUG"):
            traceback.print_exc()
        what, remedy = str(error), "`iqc doctor` says what is missing or broken"
        if isinstance(error, MemoryError):
            what, remedy = "out of memory", "use fewer --jobs, or smaller batches"
        print(f"{shown}: {what}\n  {remedy}", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("IQC_DEBUG"):
            traceback.print_exc()
        print(f"{shown}: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  this is a fault of iqc: IQC_DEBUG=1 shows where; please report it", file=sys.stderr)
        return 1
