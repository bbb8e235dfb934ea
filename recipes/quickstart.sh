#!/usr/bin/env bash
# From the sources on this machine to a trained, tuned, evaluated and exported model, on a laptop without a GPU.
#
#   recipes/quickstart.sh [DIR]        DIR (default: quickstart) is made anew; SEED=0
#
# Sources: packages of the Python that runs iqc. History: one built from its small modules, function by function, and
# this repository's own where it is deep enough. The model is nano-loop: 1.8 M parameters, two passes, 512 tokens. Every
# command is the one that a large run uses; each leaves its counts (--summary) for the report at the end.
set -euo pipefail

recipes=$(cd "$(dirname "$0")" && pwd)
work=${1:-quickstart}
seed=${SEED:-0}
lib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
templates=multiply_add,choose,divisible,repeat # of the RL tasks: four are enough for a model of this size

rm -rf "$work"
mkdir -p "$work/counts" "$work/scores"
cd "$work"
counts=counts/
started=$SECONDS
say() { echo "--- $((SECONDS - started)) s: $*" >&2; }

say "documents: crawl, clean, deduplicate; other packages are held out"
iqc crawl-clean "$lib"/{json,email,concurrent,logging,importlib,urllib} "$site"/{typer,tqdm} \
    --source python --summary ${counts}01-crawl-clean.json |
    iqc dedup --summary ${counts}02-dedup.json -o documents.jsonl.zst
iqc crawl-clean -q "$lib"/{http,wsgiref,html,tomllib} --source held-out |
    iqc fim -q --rate 1 --levels expression --stretch 300 |
    iqc head -q -n 256 -o fim-test.jsonl.zst

say "history: small modules arrive one definition at a time; triplets (old, patch, new) from it"
iqc crawl-clean -q --rules "$recipes/small.toml" --code-rules small --web-rules small --no-syntax --source python \
    "$lib"/{encodings,importlib,xml,email,asyncio,ctypes} "$site"/{rich,typer,tqdm,torch/nn,torch/ao} |
    iqc dedup -q -o small.jsonl.zst
python "$recipes/history.py" small.jsonl.zst python.git 300 >&2
repositories=(python.git)
if [ "$(git -C "$recipes" rev-list --count --first-parent HEAD 2>/dev/null || echo 0)" -ge 50 ]; then
    repositories+=("$recipes/..")
fi
iqc triplets "${repositories[@]}" --density 30 --horizon 3 --min-score 0.1 --seed "$seed" \
    --summary ${counts}03-triplets.json -o triplets.jsonl.zst

say "tasks: small functions; the constants of the test tasks are in no other"
iqc tasks -q -n 800 --templates $templates --as chat -o chats.jsonl.zst
iqc tasks -q -n 400 --templates $templates -o tasks.jsonl.zst
iqc tasks -q -n 96 --templates $templates --split test -o tasks-test.jsonl.zst

say "tokens: a tokenizer, then rows of 512 tokens for every stage"
iqc tokenizer train documents.jsonl.zst chats.jsonl.zst --vocab-size 4096 --context 512 -o tokenizer
iqc fim documents.jsonl.zst --rate 0.5 --levels expression --stretch 300 --summary ${counts}04-fim.json |
    iqc pack --tokenizer tokenizer --summary ${counts}05-pack-pretrain.json -o pretrain.jsonl.zst
iqc fim -q documents.jsonl.zst --rate 1 --levels expression --stretch 300 --seed 1 |
    iqc pack - triplets.jsonl.zst --tokenizer tokenizer --fim-middle-only --summary ${counts}06-pack-mid.json \
        -o mid.jsonl.zst
iqc pack chats.jsonl.zst --tokenizer tokenizer --summary ${counts}07-pack-instruct.json -o instruct.jsonl.zst

say "train: pretrain, anneal, mid-32k (at nano's own context), sft-instruct"
muon="--optimizer muon --batch-rows 2 --seed $seed"
iqc train -q --stage pretrain --model nano-loop --tokenizer tokenizer pretrain.jsonl.zst --epochs 0 -o fresh $muon
iqc train --stage pretrain --model nano-loop --tokenizer tokenizer pretrain.jsonl.zst --steps 110 -o pretrain $muon
iqc train --stage anneal --from pretrain pretrain.jsonl.zst --steps 40 -o anneal $muon
iqc train --stage mid-32k --from anneal mid.jsonl.zst --steps 130 -o mid-32k $muon
iqc train --stage sft-instruct --from mid-32k instruct.jsonl.zst --steps 180 -o sft-instruct --optimizer muon \
    --batch-rows 1 --seed "$seed"

say "evaluate: the missing middle, before and after"
order=0
for model in fresh anneal mid-32k; do
    order=$((order + 1))
    iqc eval run fim --data fim-test.jsonl.zst --model $model --max-new-tokens 16 \
        --summary scores/fim-$order-$model.json | sed "s/^/$model: /" | grep edit_similarity
done

say "rl: GRPO on the tests of tasks; pass rate on held-out tasks, before and after"
sampled="--samples 4 --temperature 1 --max-new-tokens 40"
iqc eval run tasks --data tasks-test.jsonl.zst --model sft-instruct $sampled --summary scores/tasks-1-before-rl.json | grep pass@1
iqc rl tasks.jsonl.zst --from sft-instruct --updates 20 --minibatches 4 --reward passed --max-new-tokens 40 \
    --seed "$seed" -o rl
iqc eval run tasks --data tasks-test.jsonl.zst --model rl $sampled --summary scores/tasks-2-after-rl.json | grep pass@1

say "export in Hugging Face layout, load it again, sample"
iqc export rl -o exported
iqc head -q -n 3 tasks-test.jsonl.zst | iqc generate --model exported --max-new-tokens 40 -o sample.jsonl.zst

say "report"
iqc report . --title "iqc quickstart" -o report.html
iqc lineage rl/step-00000020 | sed -n 1,12p
say "done: $work/report.html"
