"""Write what the parser knows into the manual pages: `python man/options.py`, or `--check` to fail where one is stale.

A page is written by hand but for two regions, `.\\" begin synopsis` to `.\\" end synopsis` and the same for `options`,
which are replaced by the arguments and options of its command, one subsection a subcommand. The options that stages
have in common are described in iqc(1) alone; other pages name them.
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAN = Path(__file__).resolve().parent
sys.path.insert(0, str(MAN.parent))  # the checkout, installed or not

from iqc import cli, options  # noqa: E402

WIDTH = 78  # mandoc's style wants no input line over 80 bytes


def common_options() -> dict[str, str]:
    """name -> help of what stages share. A command's argument or option of that name and help is not its own."""
    shared = options.STAGE_OPTIONS | options.CONFIG_OPTIONS | {"seed": (options.Seed, 0)}
    return {name: annotation.__metadata__[0].help for name, (annotation, _) in shared.items()}


COMMON = common_options()


def is_common(param: Any) -> bool:
    return param.name in COMMON and param.help == COMMON[param.name]


def commands(name: str) -> Iterator[tuple[str, Any]]:
    """(words on the command line, command) of a command, or of each of its subcommands."""
    command = cli.load(name)
    below = getattr(command, "commands", {})
    if not below:
        yield name, command
    for child, sub in below.items():
        yield f"{name} {child}", sub


def visible(command: Any) -> list[Any]:
    return [param for param in command.params if param.name != "help" and not getattr(param, "hidden", False)]


def text_lines(text: str) -> list[str]:
    """Running text as roff input: a sentence begins a line, no line begins with a control character."""
    lines = []
    for sentence in re.split(r"(?<=[.!?]) ", " ".join(text.split())):
        lines += textwrap.wrap(sentence.replace("\\", "\\e"), WIDTH, break_on_hyphens=False)
    return ["\\&" + line if line[0] in ".'" else line for line in lines]


def argument(param: Any) -> str:
    """An argument as macros: `Ar DIR`, or `Op Ar INPUT ...`."""
    name = (param.metavar or choices(param) or param.name.upper()).strip(".")
    name = name[1:-1] if name.startswith("[") and name.endswith("]") else name  # but [NAME=]DIR stays
    several = " ..." if param.nargs != 1 else ""
    return f"Ar {name}{several}" if param.required else f"Op Ar {name}{several}"


def choices(param: Any) -> str:
    return "|".join(str(choice) for choice in getattr(param.type, "choices", ()))


def flags(param: Any) -> str:
    """`Fl j , Fl -jobs Ar N`."""
    shown = " , ".join(f"Fl {flag[1:]}" for flag in [*param.opts, *param.secondary_opts])
    return shown if param.is_flag else f"{shown} Ar {value_name(param)}"


def value_name(param: Any) -> str:
    return param.metavar or choices(param) or "VALUE"


def synopsis(name: str) -> list[str]:
    lines = []
    for words, command in commands(name):
        lines.append(f".Nm iqc {words}")
        params = visible(command)
        for param in params:
            if param.param_type_name == "option" and not is_common(param):
                first = f"Fl {param.opts[-1][1:]}"
                shown = first if param.is_flag else f"{first} Ar {value_name(param)}"
                if param.secondary_opts:
                    shown = f"{first} | Fl {param.secondary_opts[-1][1:]}"
                lines.append(f".{shown}" if param.required else f".Op {shown}")
        if any(is_common(param) and param.param_type_name == "option" for param in params):
            lines.append(".Op Ar common options")
        lines += [f".{argument(param)}" for param in params if param.param_type_name == "argument"]
    return lines


def limits(param: Any) -> str:
    """The values that are taken, and the default, as sentences."""
    low, high = getattr(param.type, "min", None), getattr(param.type, "max", None)
    said = []
    if choices(param):
        said.append(f"One of {choices(param).replace('|', ', ')}.")
    elif low is not None and high is not None:
        said.append(f"From {low} to {high}.")
    elif low:
        said.append(f"At least {low}.")
    default = param.default
    if getattr(default, "value", None) is not None:
        default = default.value
    if param.is_flag and param.secondary_opts:
        said.append(f"The default is {(param.opts if default else param.secondary_opts)[0]}.")
    elif not getattr(param, "is_flag", False) and default is not None and default != "":
        said.append(f"The default is {default}.")
    return " ".join(said)


def described(params: list[Any]) -> list[str]:
    lines = [".Bl -tag -width Ds"]
    for param in params:
        if param.param_type_name == "argument":
            lines += [f".It {argument(param)}", *text_lines(param.help)]
        else:
            lines += [f".It {flags(param)}", *text_lines(f"{param.help} {limits(param)}")]
    return [*lines, ".El"]


def option_list(name: str) -> list[str]:
    lines = []
    found = list(commands(name))
    for words, command in found:
        if len(found) > 1:
            lines += [f".Ss iqc {words}", *text_lines(command.help)]
        params = visible(command)
        own = [param for param in params if not is_common(param)]
        common = [param for param in params if is_common(param)]
        if own:
            lines += described(own)
        if common:
            names = [f".{common_name(param)} ," for param in common]
            names[-1] = names[-1][:-1] + "."
            lines += [".Pp", "Common options, described in", ".Xr iqc 1 :", *names]
    return lines or ["None."]


def common_name(param: Any) -> str:
    return "Ar INPUT" if param.param_type_name == "argument" else f"Fl {param.opts[-1][1:]}"


def common_list() -> list[str]:
    """All common options: those of a stage that draws at random."""
    return described([param for param in visible(cli.load("triplets")) if is_common(param)])


def command_list() -> list[str]:
    lines = [".Bl -tag -width crawl-clean"]
    for name, text in cli.COMMANDS.items():
        lines += [f".It Xr iqc-{name} 1", *text_lines(text + ".")]
    return [*lines, ".El"]


def regions(page: str) -> dict[str, list[str]]:
    """What belongs between the marks of a page."""
    if page == "iqc":
        return {"commands": command_list(), "options": common_list()}
    name = page.removeprefix("iqc-")
    return {"synopsis": synopsis(name), "options": option_list(name)} if name in cli.COMMANDS else {}


def filled(page: str, text: str) -> str:
    """The page with its regions as the parser has them now. ValueError when a mark is missing."""
    for name, lines in regions(page).items():
        begin, end = f'.\\" begin {name}\n', f'.\\" end {name}\n'
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page}: one pair of marks for {name}")
        head, rest = text.split(begin)
        text = head + begin + "".join(line + "\n" for line in lines) + end + rest.split(end)[1]
    return text


def main(check: bool = False) -> int:
    stale = []
    for path in sorted(MAN.glob("*.1")):
        now = path.read_text("utf-8")
        wanted = filled(path.stem, now)
        if wanted != now:
            stale.append(path.name)
            if not check:
                path.write_text(wanted, "utf-8")
    if check and stale:
        print(f"stale: {', '.join(stale)}; python man/options.py writes them", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit("usage: python man/options.py [--check]")
    sys.exit(main(check=bool(sys.argv[1:])))
