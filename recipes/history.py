"""Make a git repository from documents: a deterministic history in which their functions and classes arrive one by one.

python recipes/history.py DOCUMENTS.jsonl.zst REPOSITORY.git [COMMITS]
"""

import sys

from iqc.history.build import build_history, life
from iqc.streams.runner import StreamInput, read_records

source, target, commits = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 200
documents = ((record["metadata"], record["text"]) for record in read_records(StreamInput([source])))
files = [(f"{metadata['repo']}/{metadata['path']}", text) for metadata, text in documents]
print(build_history(target, life(files, commits)))
