"""Bad inputs of every command: exit status 1 or 2, `iqc CMD: what is wrong`, a remedy, nothing published."""

import re

import pytest

# {name}: files of the world or of `bad`. Each line: exit status, the arguments, a pattern in what is said.
CASES = """
1 | crawl-clean {bad}/missing | missing: no such file
1 | crawl-clean {bad}/missing.warc.gz | no such file
2 | crawl-clean {world}/tree {world}/documents.zst | is a stream
1 | crawl-clean {bad}/no-json | no-json:1: not JSON
1 | crawl-clean {bad}/no-text | no-text:1: record without a string `text`
2 | crawl-clean {world}/tree --code-rules nonsense | nonsense
1 | crawl-clean {world}/tree --rules {bad}/missing | missing
1 | crawl-clean {bad}/page.warc | page.warc
1 | crawl-clean {bad}/cut.zst | cut.zst
1 | crawl-clean {bad}/metadata | metadata:1: field "metadata"
2 | crawl-clean {world}/tree --on-error perhaps | --on-error
1 | dedup {bad}/missing | no such file
1 | dedup {bad}/no-text | no-text:1: field "text"
1 | dedup {bad}/metadata | metadata:1: field "metadata"
2 | dedup {world}/documents.zst --threshold 3 | threshold
2 | dedup {world}/documents.zst --threshold nan | --threshold nan
1 | dedup {bad}/binary | binary
1 | triplets {world}/tree | tree
1 | triplets {bad}/missing | missing
1 | triplets {bad}/unborn | unborn
2 | triplets | no repository
2 | triplets {world}/repository --window 10 | --window 10
2 | triplets {world}/repository --density 0 | density 0
2 | triplets {world}/repository --density nan | --density nan
2 | triplets {world}/repository --window 80-40 | window
2 | triplets {world}/repository {world}/repository | are both repository
2 | triplets {world}/repository --as pr | --export
2 | triplets {world}/repository --as commit --density 3 | --density with --as commit
2 | triplets {world}/repository --encodings utf-9 | utf-9
2 | triplets {world}/repository --encodings utf-16 | utf-16
2 | triplets {world}/repository --min-stars 5 | --min-stars
2 | triplets {world}/repository --max-patch-bytes 5 | --max-patch-bytes
1 | triplets {world}/repository --window 99.9-100 | no commit between
1 | fim {bad}/no-text | no-text:1: a document needs
1 | fim {bad}/metadata --rate 1 | metadata:1: field "metadata"
1 | fim {bad}/metadata --stretch 5 | metadata:1: field "metadata"
2 | fim {world}/unique.zst --levels chapter | chapter
2 | fim {world}/unique.zst --levels line=x | line=x
2 | fim {world}/unique.zst --levels line=-1 | not positive
2 | fim {world}/unique.zst --levels line=nan | not positive
2 | fim {world}/unique.zst --levels line=inf | not positive
2 | fim {world}/unique.zst --layout pms | layout
2 | tasks -n 100000000 | has
2 | tasks --templates nonsense | nonsense
2 | tasks --split dev | split
1 | tokenizer train {bad}/missing | no such file
1 | tokenizer train {bad}/empty --vocab-size 512 | pieces
1 | tokenizer train {bad}/no-text --vocab-size 512 | record 1: a record of unknown kind
1 | tokenizer train {world}/documents.zst --vocab-size 500000 | pieces
2 | tokenizer train {world}/documents.zst --vocab-size 2 | vocab-size
1 | tokenizer train {world}/documents.zst --vocab-size 512 -o {bad}/binary | binary
1 | tokenizer show {bad}/missing | tokenizer
1 | tokenizer show {bad} | tokenizer
1 | pack {world}/documents.zst --tokenizer {bad}/missing | tokenizer
1 | pack {world}/documents.zst --tokenizer {bad}/binary | tokenizer
1 | pack {bad}/no-text --tokenizer {world}/tokenizer | no-text:1
1 | pack {world}/sequences.zst --tokenizer {world}/tokenizer | sequences.zst:1
2 | pack {world}/documents.zst | tokenizer
2 | pack {world}/documents.zst --tokenizer {world}/tokenizer --upsample-long 4096 | upsample-long
2 | pack {world}/documents.zst --tokenizer {world}/tokenizer --upsample-long 4096=0.5 | upsample
1 | model show giant | no preset 'giant'|nano-loop
1 | model show {bad} | no checkpoint
2 | model show nano --gpus 0 | gpus
2 | model show nano --precision int8 | precision
1 | model logprobs {bad}/missing {world}/ids.zst | no checkpoint
1 | model logprobs {world}/run {bad}/missing | no such file
1 | model logprobs {world}/run {bad}/no-text | no-text:1: field "ids"
1 | model logprobs {world}/run {bad}/wrong-ids | wrong-ids:2: ids.1. is 512, not a token of 512
1 | model logprobs {world}/run {world}/sequences.zst | sequences.zst:1: ids.0. is
2 | model logprobs | Missing argument
2 | model | Usage
1 | train {bad}/missing --model tiny --tokenizer {world}/tokenizer | no such file
1 | train {bad}/empty --model tiny --tokenizer {world}/tokenizer | no training rows
1 | train {world}/documents.zst --model tiny --tokenizer {world}/tokenizer | documents.zst:1|field|sequence
2 | train {world}/sequences.zst --model tiny | no tokenizer
2 | train {world}/sequences.zst --tokenizer {world}/tokenizer | no model
1 | train {world}/sequences.zst --model huge --tokenizer {world}/tokenizer | huge
2 | train {world}/sequences.zst --stage finish --tokenizer {world}/tokenizer | finish
1 | train {world}/sequences.zst --stage sft-instruct --from {world}/run | of stage pretrain, for stage sft-instruct
1 | train {world}/sequences.zst --stage anneal --from {bad} | no checkpoint
1 | train {world}/sequences.zst --model tiny --tokenizer {world}/tokenizer -o {bad}/binary | is a file
1 | train a={world}/sequences.zst b={bad}/empty --model tiny --tokenizer {world}/tokenizer | source b is empty
1 | train a={world}/sequences.zst b={world}/chat-sequences.zst --model tiny --tokenizer {world}/tokenizer | 384|256
2 | train a={world}/sequences.zst {world}/sequences.zst --model tiny --tokenizer {world}/tokenizer | has no name
2 | train a={world}/sequences.zst --weight b=1 --model tiny --tokenizer {world}/tokenizer | no source b
2 | train a={world}/sequences.zst --phase 0.4:a --model tiny --tokenizer {world}/tokenizer | phases of 0.4
2 | train a={world}/sequences.zst --weight a --model tiny --tokenizer {world}/tokenizer | --weight a: no number
1 | rl {world}/tasks.zst --from {bad}/missing | no checkpoint
1 | rl {bad}/empty --from {world}/run | no tasks
1 | rl {world}/documents.zst --from {world}/run | no tests
1 | rl {bad}/suite --from {world}/run | run in the process
1 | rl {bad}/task-without-id --from {world}/run | "id"
1 | rl {bad}/task-without-prompt --from {world}/run | no prompt
1 | rl {world}/tasks.zst --from {world}/run --max-new-tokens 350 | tokens, where
2 | rl {world}/tasks.zst | from
1 | generate {world}/prompts.zst --model {bad}/missing | no checkpoint
1 | generate {bad}/no-text --model {world}/run | no-text:1: no prompt
1 | generate {bad}/no-id --model {world}/run | no-id:2: field "id"
1 | generate {bad}/long-prompt --model {world}/run | long-prompt:1: a prompt of
2 | generate {world}/prompts.zst --model {world}/run --max-new-tokens 384 | no room
1 | generate {bad}/missing --model {world}/run | no such file
2 | generate {world}/prompts.zst | model
2 | eval prompts nonsense --data {world}/held-out.zst | nonsense
1 | eval prompts tasks --data {bad}/missing | missing
1 | eval prompts tasks --data {world}/documents.zst | neither|no tests
1 | eval prompts humaneval --data {world}/documents.zst | iqc
1 | eval prompts fim --data {world}/documents.zst | iqc
2 | eval score tasks {bad}/no-text --data {world}/held-out.zst -k x | -k x
2 | eval score tasks {bad}/no-text --data {world}/held-out.zst -k 0 | pass@0
1 | eval score tasks {bad}/no-text --data {world}/held-out.zst | task_id
1 | eval score tasks {bad}/unknown-task --data {world}/held-out.zst | unknown task
1 | eval score tasks {bad}/no-completion --data {world}/held-out.zst | text
1 | eval score fim {bad}/no-text --data {world}/documents.zst | iqc
1 | eval run tasks --data {world}/held-out.zst --model {bad}/missing | no checkpoint
1 | export {bad}/missing | no checkpoint
1 | export {bad} | no checkpoint
1 | export {world}/run -o {world}/dense | exists
2 | export | .
1 | head {bad}/missing | no such file
2 | head -n some {world}/documents.zst | -n some
1 | head -n all {bad}/no-json | no-json:1
1 | head {world}/documents.zst -o {bad}/nowhere/out | no such directory
1 | stats {bad}/missing | no such file
1 | lineage {bad}/missing | missing
1 | lineage {bad}/no-text | no lineage
2 | heads {world}/documents.zst | heads
"""
LINES = [tuple(part.strip() for part in line.split(" | ")) for line in CASES.strip().splitlines()]


@pytest.fixture(scope="module")
def bad(world, tmp_path_factory):
    import subprocess

    place = tmp_path_factory.mktemp("bad")
    (place / "empty").write_text("")
    (place / "no-json").write_text("broken\n")
    (place / "no-text").write_text('{"id":"a"}\n')
    (place / "metadata").write_text('{"id":"a","text":"one two three\\nfour five","metadata":"x"}\n')
    (place / "no-id").write_text('{"id":"a","prompt":"x"}\n{"prompt":"x"}\n')
    (place / "long-prompt").write_text('{"id":"a","prompt":"%s"}\n' % ("word " * 2000))
    (place / "binary").write_bytes(bytes(range(256)) * 4)
    (place / "page.warc").write_bytes(b"WARC/1.0\r\nContent-Length: 99999\r\n\r\nshort")
    (place / "suite").write_text('{"id":"a","prompt":"x","entry_point":"f","tests":"for i in (1, 2): assert f(i)"}\n')
    (place / "task-without-id").write_text('{"prompt":"x","entry_point":"f","tests":"assert f(1) == 1"}\n')
    (place / "task-without-prompt").write_text('{"id":"a","entry_point":"f","tests":"assert f(1) == 1"}\n')
    (place / "wrong-ids").write_text('{"id":"a","ids":[1]}\n{"id":"b","ids":[511,512]}\n')
    (place / "unknown-task").write_text('{"id":"a","task_id":"none","text":"x"}\n')
    (place / "cut.zst").write_bytes((world / "documents.zst").read_bytes()[:-100])
    from iqc.streams.runner import StreamInput, read_records

    task = next(iter(read_records(StreamInput([str(world / "held-out.zst")]))))["id"]
    (place / "no-completion").write_text(f'{{"id":"a","task_id":"{task}"}}\n')
    (place / "unborn").mkdir()
    subprocess.run(["git", "init", "-q", place / "unborn"], check=True, capture_output=True)
    return place


@pytest.mark.parametrize(("status", "command", "said"), LINES, ids=[line[1].replace("/", "-") for line in LINES])
def test_bad_input(server, world, bad, tmp_path, status, command, said):
    words = [word.format(world=world, bad=bad) for word in command.split()]
    writes = words[0] not in ("stats", "lineage", "heads") and words[1:2] not in (["show"], ["score"])
    before = sorted(bad.rglob("*"))
    if writes and "-o" not in words and len(words) > 1:
        words += ["-o", tmp_path / "out"]
    done = server.run(*words, stdin=b"")
    assert done.returncode == int(status), done.stderr
    first, *rest = done.stderr.strip().splitlines()
    assert re.search(said, done.stderr), done.stderr
    if not first.startswith("Usage: "):
        assert first.startswith("iqc"), done.stderr
        plain = re.search("o such file|File exists|no stream, directory", first)  # that says it all
        assert plain or (rest and rest[-1].startswith("  ")), f"no remedy: {done.stderr}"
    left = [path for path in tmp_path.rglob("*") if path.name not in (".lock", "metrics.jsonl")]
    assert left in ([], [tmp_path / "out"] if words[0] in ("train", "rl") else []) and sorted(bad.rglob("*")) == before
