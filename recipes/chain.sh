#!/usr/bin/env bash
# All stages of training, in the order of the table (`iqc train --list-stages`): from fresh weights to the checkpoints
# that the report names, each of which says in its lineage what it was made of.
#
#   recipes/chain.sh DIR DATA MODEL [OPTION...]      MODEL: a preset; OPTION...: of every `iqc train`
#
# DIR/tokenizer is trained on what DATA has of general text and files, unless it is there. STAGES="pretrain anneal": these
# alone. DATA, and what else may be set: see stage.sh. The same command again goes on where the chain stopped.
set -euo pipefail

work=${1:?usage: recipes/chain.sh DIR DATA MODEL [OPTION...]} data=${2:?no DATA} model=${3:?no MODEL}
shift 3
recipes=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work"
if [ ! -e "$work/tokenizer" ]; then
    size=$(python -c 'import sys; from iqc.model.config import preset; print(preset(sys.argv[1]).vocab_size)' "$model")
    texts=()
    for name in general file; do
        for path in "$data/$name" "$data/$name".jsonl*; do if [ -e "$path" ]; then texts+=("$path"); fi; done
    done
    iqc tokenizer train "${texts[@]}" --vocab-size "$size" -o "$work/tokenizer"
fi
for stage in ${STAGES:-$(iqc train --list-stages | sed -n '2,$s/ .*//p')}; do
    MODEL=$model bash "$recipes/stage.sh" "$stage" "$work" "$data" "$@"
done
