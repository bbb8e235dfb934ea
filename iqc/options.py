"""What the commands' options have in common: declared once, read from flag, environment, file or default.

`@stage_options()` gives a command function whose first parameter is `settings: Settings` all the options of a stage
instead, and hands it the settings. Every option has four sources, the first that has it wins: the flag,
`IQC_<COMMAND>_<OPTION>`, `--config FILE.toml` (a table named as the command, or the top level), the default.
"""

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from iqc.errors import ClosedPipe, UsageError


def command_app(**settings: Any) -> typer.Typer:
    """A Typer as every command uses it: plain help, -h, our own errors."""
    return typer.Typer(
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        **settings,
    )


def _read_config(ctx: typer.Context, path: str | None) -> str | None:
    """Make the file's settings the defaults of this command."""
    if path is None:
        return None
    import tomllib

    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=path, remedy="--config takes a TOML file") from None
    own = _table_of(ctx, table, path)
    values = {key.replace("-", "_"): value for key, value in own.items() if own is not table or key not in _tables(own)}
    known = {param.name: param for param in ctx.command.params if param.name not in ("config", "print_config", "help")}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f'no option "{key}"', where=path, remedy=f"iqc {ctx.info_name} -h lists the options")
        flag, several = getattr(known[key], "is_flag", False), known[key].nargs != 1
        if flag and not isinstance(value, bool):
            raise UsageError(f'option "{key}" is {value}', where=path, remedy=f"{key} takes true or false")
        if isinstance(value, list) != several or not all(map(_is_plain, value if several else [] if flag else [value])):
            kind = "a list" if several else "one value"
            raise UsageError(f'option "{key}" is {value}', where=path, remedy=f"{key} takes {kind}")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return path


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _tables(table: dict[str, Any]) -> list[str]:
    return [name for name, value in table.items() if isinstance(value, dict)]


def _table_of(ctx: typer.Context, table: dict[str, Any], path: str) -> dict[str, Any]:
    """This command's part of the file: [tokenizer.train], else [train], else the top level."""
    from iqc.cli import COMMANDS, load

    unknown = [name for name in _tables(table) if name not in COMMANDS]
    if unknown:
        below = {child for name in COMMANDS for child in getattr(load(name), "commands", {})}
        shown = ", ".join(f"[{name}]" for name in unknown if name not in below)
        if shown:
            raise UsageError(f"no command has the table {shown}", where=path, remedy="iqc -h lists the commands")
    group, name = ctx.parent.info_name if ctx.parent else None, ctx.info_name or ""
    nested = table.get(group or "")
    own = nested[name] if isinstance(nested, dict) and name in nested else table.get(name, table)
    if not isinstance(own, dict):
        raise UsageError(f"{name} = {own}", where=path, remedy=f"[{name}] is a table of options")
    return own


Config = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", is_eager=True, callback=_read_config, help="Take options from a TOML file."
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print every option with its value and where it came from, and stop.")
]
Inputs = Annotated[
    list[str] | None, typer.Argument(metavar="[INPUT]...", help="Streams; standard input without any, or for -.")
]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FILE|DIR/", help="Where the records go; a directory means shards."),
]
OutputFile = Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Where the records go.")]
INT32, INT64 = 2**31 - 1, 2**63 - 1  # what positions and sizes, and seeds, may be at most
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, max=INT64, help="Where all random choices start.")]
Jobs = Annotated[int, typer.Option("-j", "--jobs", metavar="N", min=0, help="Processes; 0 means all cores.")]
Summary = Annotated[str | None, typer.Option("--summary", metavar="FILE", help="Write the counts as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no summary on standard error.")]

STAGE_OPTIONS: dict[str, tuple[Any, Any]] = {  # name: (annotation, default)
    "inputs": (Inputs, None),
    "output": (Output, None),
    "plain": (Annotated[bool, typer.Option("--plain", help="Write JSON lines, uncompressed, without lineage.")], False),
    "jobs": (Jobs, 0),
    "on_error": (
        Annotated[
            str,
            typer.Option("--on-error", metavar="WHAT", help="Of a bad record: fail, skip, or quarantine=FILE."),
        ],
        "fail",
    ),
    "explain": (
        Annotated[
            str | None,
            typer.Option("--explain", metavar="FILE", help="Write dropped records, each with rule and value."),
        ],
        None,
    ),
    "summary": (Summary, None),
    "quiet": (Quiet, False),
    "ray": (
        Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help="Make the shards on a Ray cluster.")],
        None,
    ),
    "shard_mib": (
        Annotated[
            int, typer.Option("--shard-mib", metavar="N", min=1, max=2**20, help="MiB of text a shard, with -o DIR/.")
        ],
        256,
    ),
    "input_digest": (
        Annotated[
            str | None,
            typer.Option("--input-digest", metavar="D", help="What is piped in, so that shards can resume."),
        ],
        None,
    ),
}
CONFIG_OPTIONS: dict[str, tuple[Any, Any]] = {"config": (Config, None), "print_config": (PrintConfig, False)}


def stage_options(*names: str, **annotations: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a stage (all, or those named) in place of its first parameter, the settings.

    `annotations` replace those of single options, for a command in which they mean something narrower.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        shared = {name: STAGE_OPTIONS[name] for name in names or STAGE_OPTIONS}
        shared |= {name: (annotation, STAGE_OPTIONS[name][1]) for name, annotation in annotations.items()}
        return _with_options(function, shared, takes_settings=True)

    return decorate


def config_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command that is no stage --config and --print-config."""
    return _with_options(function, {}, takes_settings=False)


def _with_options(
    function: Callable[..., None], shared: dict[str, tuple[Any, Any]], takes_settings: bool
) -> Callable[..., None]:
    hints = get_type_hints(function, include_extras=True, localns={"Settings": Any})
    own = list(inspect.signature(function).parameters.values())[1 if takes_settings else 0 :]
    keyword = inspect.Parameter.KEYWORD_ONLY

    def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, keyword, annotation=annotation, default=default)

    parameters = [parameter(name, *declared) for name, declared in shared.items() if name == "inputs"]
    parameters += [parameter(item.name, hints[item.name], item.default) for item in own]
    parameters += [parameter(name, *declared) for name, declared in shared.items() if name != "inputs"]
    parameters += [parameter(name, *declared) for name, declared in CONFIG_OPTIONS.items()]
    parameters.append(parameter("ctx", typer.Context, inspect.Parameter.empty))

    @functools.wraps(function)
    def run(ctx: typer.Context, config: str | None, print_config: bool, **values: Any) -> None:
        if print_config:
            _print_config(ctx)
            return
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{name.replace('_', '-')} {value}", remedy="give a finite number")
        _refuse_empty(ctx.command.params, values)
        try:
            if not takes_settings:
                function(**values)
                return
            from iqc.streams.runner import Settings

            settings = Settings(**{name: values.pop(name) for name in shared})
            function(settings, **values)
        except BrokenPipeError:  # from print; Typer would make it status 1
            raise ClosedPipe from None

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    return run


def _refuse_empty(params: list[Any], values: dict[str, Any]) -> None:
    """An empty string is a value only where it is the default; side streams never go where records go."""
    for param in params:
        value = values.get(param.name)
        if value != param.default and (value == "" or (isinstance(value, list | tuple) and "" in value)):
            shown = param.opts[-1] if param.param_type_name == "option" else param.metavar or param.name
            raise UsageError(f'{shown} is ""', remedy="is a shell variable unset? give it a value, or leave it out")
    for name in ("summary", "explain"):
        if values.get(name) == "-":
            raise UsageError(f"--{name} -", remedy=f"standard output is not for this: name a file, --{name} FILE")


SOURCES = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "config file", "DEFAULT": "default"}


def _print_config(ctx: typer.Context) -> None:
    """Every option as TOML, with where its value came from."""
    for param in ctx.command.params:
        if param.name in ("config", "print_config", "help", None):
            continue
        source = ctx.get_parameter_source(param.name)
        value = ctx.params[param.name]
        text = f"# {param.name}" if value is None else f"{param.name} = {_toml(value)}"
        print(f"{text:<40} # {SOURCES.get(source.name, source.name) if source else 'default'}")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    import json

    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's other escapes are TOML's


def pairs(option: str, texts: list[str]) -> dict[str, float]:
    """`NAME=X` of an option to numbers by name."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if name in found:
            raise UsageError(f"--{option} {text}: {name} has {found[name]:g} already", remedy="give each name once")
        try:
            found[name] = float(number)
        except ValueError:
            raise UsageError(f"--{option} {text}: no number", remedy=f"--{option} {name or 'NAME'}=2") from None
        if not name or not 0 <= found[name] <= 1e15:
            raise UsageError(f"--{option} {text}", remedy="give a name and a number from 0 to 1e15: NAME=2")
    return found
