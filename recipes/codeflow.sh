#!/usr/bin/env bash
# What a repository teaches beside its files: how they hang together, what stands in their holes, how they change.
#
#   recipes/codeflow.sh DIR REPOSITORY...       git repositories, bare or not; DIR must not exist yet
#
# SEED=0. EVENTS=FILE adds pull requests from an export of GitHub (GH Archive events, or what its REST API answers);
# REPOSITORY is then OWNER/NAME=PATH. Every stream is of records that `iqc pack` takes.
set -euo pipefail

work=${1:?usage: recipes/codeflow.sh DIR REPOSITORY...}
shift
seed=${SEED:-0}
mkdir "$work"
counts() { echo "$work/$1.counts.json"; }
made() { echo "$work/$1.jsonl.zst"; }

# Whole repositories, each file behind what it imports.
iqc repos "$@" --seed "$seed" --summary "$(counts repositories)" -o "$(made repositories)"

# The missing middle: of single files, clean and without duplicates, and with context from the rest of the repository.
iqc repos -q "$@" --as files |
    iqc crawl-clean -q |
    iqc dedup -q |
    iqc fim --rate early --seed "$seed" --summary "$(counts fim-files)" -o "$(made fim-files)"
iqc fim "$(made repositories)" --rate early --seed "$seed" --summary "$(counts fim-repositories)" \
    -o "$(made fim-repositories)"

# Change: mature states and what became of them, every commit with what could be known before it, pull requests.
iqc triplets "$@" --seed "$seed" --summary "$(counts triplets)" -o "$(made triplets)"
iqc triplets "$@" --as commit --summary "$(counts commits)" -o "$(made commits)"
if [ -n "${EVENTS:-}" ]; then
    iqc triplets "$@" --as pr --export "$EVENTS" --summary "$(counts pulls)" -o "$(made pulls)"
fi
