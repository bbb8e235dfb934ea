"""Fill-in-the-middle: `cuts` draws the hole, `layout` writes the text, `snippets` finds context in the repository (by
BM25, or with `embeddings`), `samples` makes records of it all, `stages` is what the command runs."""
