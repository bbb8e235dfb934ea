"""The worker of test_reshard.py, one of several ranks: engines take checkpoints of others, write them again and go on.

    torchrun ... tests/train/reshard.py FROM TO

Each engine takes the newest checkpoint of the run FROM, writes it anew as it is to TO/ENGINE/again, makes an update and
writes that to TO/ENGINE. TO/losses has the losses by engine.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import parity

from iqc.train.engines.engine import Engine
from iqc.train.ranks import Ranks
from iqc.train.run import Run

NAMES = ("local", "zero 1", "zero 2", "zero 3")


def engine_of(name: str, ranks: Ranks) -> Engine:
    if name == "local":
        return parity.local(ranks, **parity.LOOP)
    return parity.zero(ranks, int(name[-1]), **parity.LOOP)


def save(run: Run, step: int, engine: Engine) -> None:
    run.save(step, engine.model, engine.pieces(), lambda digest: {"output": {"digest": digest}}, done=False)
    run.settle()


def go_on(engine: Engine, source: Path, target: Path) -> float:
    """Take the newest checkpoint of `source`, write it again, make the next update; returns its loss."""
    with Run(source, {}, None, engine.ranks) as run:
        progress = run.resume()
    assert progress is not None
    engine.load(progress.stored)
    with Run(target / "again", {}, None, engine.ranks) as run:
        run.resume()
        save(run, progress.step, engine)
    batch = parity.share(parity.rows(progress.step), engine.ranks.data_rank, engine.ranks.data_ranks)
    made = parity.update(engine, parity.NextToken(), batch, parity.RATE, batch_rows=parity.ROWS)
    with Run(target, {}, None, engine.ranks) as run:
        save(run, progress.step + 1, engine)
    return made["loss"]


def main(source: Path, target: Path, names: tuple[str, ...] = NAMES) -> None:
    with Ranks.start() as ranks:
        found = {name: go_on(engine_of(name, ranks), source, target / name) for name in names}
        if ranks.main:
            (target / "losses").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
