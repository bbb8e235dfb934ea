"""Runs for the multilingual law: trains small models on mixtures of languages and measures their loss.

    python tests/bench/law_runs.py --sources python=DIR[,DIR]... --sources java=DIR ... --minutes 15

Every size x mixture is one training from fresh weights (iqc.model, iqc.train; float32, one thread) at the constant rate
of stage pretrain; its loss is measured after each budget of tokens, on rows of files that were held out, one set a
language. The loss of the mixture is the average of the languages' losses by their shares, in nats a token; `bytes_loss`
is in nats a byte. N counts all parameters. The points of one training share `run`.

A training whose points are in the output is not repeated, so that the work can be done in pieces: it stops before the
first training after --minutes. Files are held out by a digest of their path; nothing says that they are not near
duplicates of others. Languages with fewer training tokens than the largest budget are read several times, which the
table that is printed first says.
"""

import argparse
import hashlib
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from measure import REPO, RESULTS

sys.path.insert(0, str(REPO))

from iqc.model.config import ModelConfig, parameter_count
from iqc.model.decoder import Decoder
from iqc.syntax.languages import language_of
from iqc.tokens.loader import Batch
from iqc.tokens.tokenizer import Tokenizer, train
from iqc.train.engines.engine import CLIP
from iqc.train.engines.local import Local
from iqc.train.losses import NextToken
from iqc.train.optimizer import make_optimizer
from iqc.train.ranks import Ranks
from iqc.train.stages import learning_rate, peak_rate, stage
from iqc.train.step import update

VOCABULARY, CONTEXT, ROWS = 512, 128, 4  # pieces and control tokens, tokens a row, rows an update
SIZES = {  # hidden size: (layers, heads)
    16: (1, 2),
    32: (2, 2),
    56: (3, 2),
}
RATE = 0.5  # of peak_rate, which is for updates of more tokens: 2e-3 at width 64, where it beat 1e-3
BUDGETS = (98_304, 196_608, 393_216, 786_432)  # tokens
MIXTURES = (  # of four languages, in the order of --sources
    (1, 0, 0, 0),
    (0, 1, 0, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 1),
    (0.25, 0.25, 0.25, 0.25),
    (0, 0.5, 0.5, 0),
    (0.5, 0, 0, 0.5),
    (0.1, 0.2, 0.3, 0.4),
)
TOKENIZER_BYTES = 1 << 19  # of each language
TRAIN_BYTES, VALID_BYTES = 3 << 20, 1 << 18  # of each language, at most
VALID_ROWS = 96  # of each language


def texts(language: str, directories: list[str]) -> tuple[list[str], list[str]]:
    """(training files, held-out files) of a language, in the order of a digest of their paths."""
    found: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    paths = [(path, base) for base in map(Path, directories) for path in base.rglob("*") if path.is_file()]
    keyed = sorted((hashlib.sha256(str(path.relative_to(base)).encode()).digest(), path) for path, base in paths)
    for key, path in keyed:
        held_out = key[-1] < 26  # a tenth
        if language_of(path.name) != language or sizes[held_out] > (VALID_BYTES if held_out else TRAIN_BYTES):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if 200 <= len(text) <= 100_000:
            found[held_out].append(text)
            sizes[held_out] += len(text.encode())
    return found


def rows_of(tokenizer: Tokenizer, files: list[str], most: int) -> tuple[np.ndarray, float]:
    """([rows, CONTEXT] tokens of the files, joined, cut and shuffled; bytes a token)."""
    ids = [np.array(tokenizer.encode_ordinary(text), np.int64) for text in files]
    joined = np.concatenate(ids)
    rows = joined[: len(joined) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    rows = rows[np.argsort(np.random.PCG64(0).random_raw(len(rows)), kind="stable")][:most]
    return rows, sum(len(text.encode()) for text in files) / len(joined)


def order(shares: tuple[float, ...], rows: int) -> list[int]:
    """The language of each row: at any point as near to the shares as whole rows can be."""
    counts = np.zeros(len(shares))
    chosen = []
    for row in range(rows):
        best = int(np.argmax(np.array(shares) * (row + 1) - counts))
        counts[best] += 1
        chosen.append(best)
    return chosen


def batch(rows: np.ndarray) -> Batch:
    weights = np.ones(rows.shape, np.float32)
    weights[:, 0] = 0
    return Batch(rows, weights, [np.array([rows.shape[1]], np.int64)] * len(rows))


@torch.inference_mode()
def valid_loss(model: Decoder, rows: np.ndarray) -> float:
    model.eval()
    total = count = 0.0
    for part in np.array_split(rows, max(1, len(rows) // 32)):
        loss, weight = model.loss(torch.from_numpy(part))
        total, count = total + float(loss), count + float(weight)
    model.train()
    return total / count


def measure(hidden: int, shares: tuple[float, ...], seed: int, data: dict[str, dict], save) -> None:
    """One training; `save` gets its points."""
    layers, heads = SIZES[hidden]
    config = ModelConfig(VOCABULARY, hidden, 3 * hidden, layers, heads, heads // 2, CONTEXT)
    model = Decoder(config, seed=seed)
    peak, pretrain = RATE * peak_rate(hidden), stage("pretrain")
    engine = Local(model, make_optimizer(model, peak, "adamw"), Ranks(), CLIP, None)
    languages, used, steps = list(data), dict.fromkeys(data, 0), BUDGETS[-1] // (ROWS * CONTEXT)
    sequence = order(shares, steps * ROWS)
    name = f"{hidden}-{'-'.join(f'{share:g}' for share in shares)}-{seed}"
    for step, (first, last) in enumerate(pairwise(range(0, len(sequence) + 1, ROWS))):
        picked = []
        for language in (languages[at] for at in sequence[first:last]):
            rows = data[language]["train"]
            picked.append(rows[used[language] % len(rows)])
            used[language] += 1
        update(engine, NextToken(), batch(np.stack(picked)), learning_rate(pretrain, peak, step, steps))
        if (tokens := (step + 1) * ROWS * CONTEXT) in BUDGETS:
            losses = {language: valid_loss(model, item["valid"]) for language, item in data.items()}
            mean = sum(share * losses[language] for share, language in zip(shares, languages))
            in_bytes = sum(share * losses[x] / data[x]["bytes_a_token"] for share, x in zip(shares, languages))
            save({"run": name, "N": parameter_count(config), "D": tokens, "p": dict(zip(languages, shares)),
                  "loss": mean, "bytes_loss": in_bytes, "losses": losses, "seed": seed})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sources", action="append", required=True, metavar="LANG=DIR[,DIR]...", help="four of them")
    parser.add_argument("--minutes", type=float, default=15, help="of this process's processor time")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of the uniform mixture at the smallest size")
    parser.add_argument("--output", type=Path, default=RESULTS / "law_runs.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sources = {name: places.split(",") for name, _, places in (item.partition("=") for item in args.sources)}
    if len(sources) != len(MIXTURES[0]):
        parser.error(f"{len(sources)} languages, the mixtures are of {len(MIXTURES[0])}")
    files = {language: texts(language, places) for language, places in sources.items()}
    sample = [text for training, _ in files.values() for text in cut(training, TOKENIZER_BYTES)]
    tokenizer = train(iter(sample), VOCABULARY)
    data = {}
    for language, (training, held_out) in files.items():
        rows, ratio = rows_of(tokenizer, training, BUDGETS[-1] // CONTEXT)
        data[language] = {"train": rows, "valid": rows_of(tokenizer, held_out, VALID_ROWS)[0], "bytes_a_token": ratio}
        sizes = f"{rows.size:,} tokens to train on, {data[language]['valid'].size:,} held out"
        print(f"{language:<12} {len(training):,} files, {sizes}, {ratio:.2f} bytes a token", file=sys.stderr)
    done = {json.loads(line)["run"] for line in args.output.open()} if args.output.exists() else set()
    uniform = MIXTURES[len(MIXTURES[0])]
    wanted = [(hidden, shares, 0) for shares in MIXTURES for hidden in SIZES]
    wanted += [(min(SIZES), uniform, seed) for seed in range(1, args.seeds)]
    for hidden, shares, seed in wanted:
        if f"{hidden}-{'-'.join(f'{share:g}' for share in shares)}-{seed}" in done:
            continue
        if time.process_time() > 60 * args.minutes:
            print("time is up: call it again for the rest", file=sys.stderr)
            return
        points: list[dict] = []
        measure(hidden, shares, seed, data, points.append)
        with args.output.open("a") as out:  # all points of a training, or none
            out.writelines(json.dumps(point) + "\n" for point in points)
        print(f"{points[-1]['run']}: {points[-1]['loss']:.4f} after {time.process_time():.0f} s", file=sys.stderr)


def cut(files: list[str], size: int) -> list[str]:
    """The first files, of `size` characters together."""
    kept, total = [], 0
    for text in files:
        if total < size:
            kept.append(text)
            total += len(text)
    return kept


if __name__ == "__main__":
    main()
