# What one does with a checkout. Without a `just` of your own:
#     python3 -m venv .venv && .venv/bin/pip install rust-just && .venv/bin/just
# Everything is installed into .venv and nowhere else. On a machine without a GPU, PyTorch's builds for processors are
# a tenth of the download: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

export PATH := justfile_directory() / ".venv/bin" + ":" + env("PATH")

_list:
    @"{{ just_executable() }}" --justfile "{{ justfile() }}" --list --unsorted

# install the checkout with some extras, again only after pyproject.toml changed
_install extras:
    #!/usr/bin/env bash
    set -euo pipefail
    stamp='.venv/installed-{{ extras }}'
    if [ ! "$stamp" -nt pyproject.toml ]; then
        [ -x .venv/bin/python ] || python3 -m venv .venv
        .venv/bin/python -m pip install --quiet --editable '{{ if extras == "" { "." } else { ".[" + extras + "]" } }}'
        touch "$stamp"
    fi

# From sources to an evaluated model on one processor, in minutes
[group('use')]
quickstart: (_install "")
    bash recipes/quickstart.sh

# One stage of training, mix to checkpoint: just stage mid-32k DIR DATA --steps 100 (recipes/stage.sh says what DATA has)
[group('use')]
stage name dir data *args: (_install "")
    bash recipes/stage.sh '{{ name }}' '{{ dir }}' '{{ data }}' {{ args }}

# All stages in order, from fresh weights: just chain DIR DATA nano-loop (recipes/chain.sh)
[group('use')]
chain dir data model *args: (_install "")
    bash recipes/chain.sh '{{ dir }}' '{{ data }}' '{{ model }}' {{ args }}

# All tests; with arguments, pytest's
[group('check')]
test *args: (_install "test")
    python -m pytest -n auto --dist loadfile --no-loadscope-reorder {{ args }}

# Style and format
[group('check')]
lint: (_install "dev")
    ruff check .
    ruff format --check .

# Types. commands/ and kernels/ are linked to where their imports say they are
[group('check')]
types: (_install "dev")
    rm -rf build/types
    mkdir -p build/types/iqc
    for entry in iqc/* commands kernels; do ln -s "../../../$entry" build/types/iqc/; done
    mypy

# One benchmark of tests/bench, with its arguments
[group('check')]
bench name *args: (_install "dev,bench")
    python 'tests/bench/{{ name }}.py' {{ args }}

# The options in the manual pages, written anew from the commands
[group('doc')]
man *args: (_install "dev")
    python man/options.py {{ args }}

# Completion scripts of bash, zsh and fish, under build/completions
[group('doc')]
completions: (_install "")
    mkdir -p build/completions
    iqc completion bash > build/completions/iqc
    iqc completion zsh > build/completions/_iqc
    iqc completion fish > build/completions/iqc.fish

# Remove what was built, but not .venv
[group('release')]
clean:
    rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
    find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Source distribution and wheel, under dist
[group('release')]
dist: (_install "dev") clean
    python -m build

# The wheel in an environment of its own, called from / : the help of every command
[group('release')]
smoke: dist
    #!/usr/bin/env bash
    set -euo pipefail
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    python3 -m venv "$place"
    "$place/bin/pip" install --quiet dist/*.whl
    cd /
    "$place/bin/iqc" --version
    "$place/bin/iqc" -h | sed -n '/^Commands/,$s/^  \([a-z-]*\)  .*/\1/p' | while read -r name; do
        "$place/bin/iqc" "$name" -h > /dev/null
    done
    "$place/bin/iqc" doctor

# What must hold before a tag: a clean tree, checks, tests, pages up to date, a wheel that works
[group('release')]
release: lint types test (man "--check") smoke
    test -z "$(git status --porcelain)"
    grep -q "^## $(iqc --version | cut -d' ' -f2)" CHANGELOG.md
    @echo "tag it: git tag -s v$(iqc --version | cut -d' ' -f2)"
