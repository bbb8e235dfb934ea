#!/usr/bin/env bash
# One stage of training (`iqc train --list-stages`), from its sources to its checkpoint: fim, mix, pack, train.
#
#   recipes/stage.sh STAGE DIR DATA [OPTION...]
#
# DATA has a stream for each source of the stage's mixture, recipes/STAGE.toml: file.jsonl.zst or a directory file/.
# Sources that it lacks are left out, said aloud; stage1, what pre-training saw, is what the stages before made in DIR.
# DIR has the tokenizer, as DIR/tokenizer, and the runs of the stages before: the newest that STAGE starts from is taken.
# What is there already is not made again, and a run that was stopped goes on. OPTION... are those of `iqc train`.
#
# TOTAL=300B, of tokens (default: what the recipe says, else until a source is used up); EPOCHS=1, how often a source is
# given at most; CONTEXT, tokens a row (default: the stage's); MODEL, the preset of fresh weights; SEED=0.
set -euo pipefail

stage=${1:?usage: recipes/stage.sh STAGE DIR DATA [OPTION...]} work=${2:?no DIR} data=${3:?no DATA}
shift 3
recipes=$(cd "$(dirname "$0")" && pwd)
seed=${SEED:-0}
tokenizer=$work/tokenizer rows=$work/$stage.rows.jsonl.zst mixed=$work/$stage.mixed.jsonl.zst
say() { echo "--- $stage: $*" >&2; }

row=$(iqc train --list-stages | grep "^$stage ") || { say "no such stage"; exit 2; }
read -r _ from checkpoint context mixture fim _ <<<"$row"

find_source() { # the stream of a source: in DATA, or what pre-training was given
    for path in "$data/$1" "$data/$1".jsonl*; do
        if [ -e "$path" ]; then echo "$path" && return; fi
    done
    for path in "$work"/{pretrain-code,pretrain}.mixed.jsonl.zst; do
        if [ "$1" = stage1 ] && [ -e "$path" ]; then echo "$path" && return; fi
    done
}

if [ ! -e "$rows" ]; then
    options=(--recipe "$recipes/$mixture" --tokenizer "$tokenizer" --max-epochs "${EPOCHS:-1}" --short rescale)
    for name in $(sed -n 's/^\[source\.\([a-z0-9]*\)\].*/\1/p' "$recipes/$mixture"); do
        path=$(find_source "$name")
        if [ -z "$path" ]; then
            say "without $name"
            options+=(--weight "$name=0")
            continue
        fi
        if [[ "$name" =~ ^(file|repository)$ && "$fim" != 0 ]]; then
            cut=$work/$name.fim-$fim.jsonl.zst
            [ -e "$cut" ] || iqc fim "$path" --rate "$fim" --seed "$seed" -q -o "$cut"
            path=$cut
        fi
        options+=("$name=$path")
    done
    iqc mix "${options[@]}" ${TOTAL:+--total "$TOTAL"} --seed "$seed" -o "$mixed"
    errors=()
    case $stage in sft-*) errors=(--mask-errors) ;; esac # no failed call is learnt
    iqc pack "$mixed" --tokenizer "$tokenizer" --context "${CONTEXT:-$context}" "${errors[@]}" -o "$rows"
fi

start=(--model "${MODEL:-}" --tokenizer "$tokenizer")
if [ "$from" != - ]; then
    for before in ${from//|/ }; do
        if [ -d "$work/$before" ]; then start=(--from "$work/$before"); fi
    done
    [ "${start[0]}" = --from ] || { say "starts from ${from//|/ or }, of which none is in $work"; exit 1; }
fi
iqc train "$rows" --stage "$stage" "${start[@]}" --seed "$seed" -o "$work/$stage" "$@"
say "$work/$stage/$checkpoint"
