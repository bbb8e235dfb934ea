"""`iqc tasks`: generate small programming tasks with tests."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from iqc.options import INT32, OutputFile, Seed, command_app, stage_options

if TYPE_CHECKING:
    from iqc.streams.runner import Settings

app = command_app()


class Split(StrEnum):
    train = "train"
    test = "test"


class Form(StrEnum):
    task = "task"
    chat = "chat"


@app.command()
@stage_options("output", "plain", "summary", "quiet", output=OutputFile)
def tasks(
    settings: "Settings",
    count: Annotated[int, typer.Option("-n", "--count", metavar="N", min=1, max=INT32, help="How many tasks.")] = 100,
    split: Annotated[
        Split, typer.Option("--split", help="Constants of one side are never seen on the other.")
    ] = Split.train,
    form: Annotated[
        Form, typer.Option("--as", help="Tasks with tests, or chats with the reference answer.")
    ] = Form.task,
    templates: Annotated[
        str | None, typer.Option("--templates", metavar="NAME,...", help="Only these templates.")
    ] = None,
    skip: Annotated[int, typer.Option("--skip", metavar="N", min=0, max=INT32, help="Pass over the first N.")] = 0,
    seed: Seed = 0,
) -> None:
    """Generate small Python tasks from templates: an instruction, tests as calls, a reference."""
    from iqc.rl.tasks import as_chat, generate_tasks
    from iqc.streams.runner import write_records

    chosen = templates.split(",") if templates else None
    made = generate_tasks(count, seed, split.value, templates=chosen, skip=skip)
    records = (as_chat(task) if form is Form.chat else task for task in made)
    options = {"count": count, "split": split.value, "as": form.value, "templates": chosen, "skip": skip}
    write_records("tasks", options, settings, records, list, seed)
