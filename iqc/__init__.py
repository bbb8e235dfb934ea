"""iqc: the making of a code language model, from crawl and git history to an evaluated checkpoint."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout `commands/` and `kernels/` lie beside this directory (pyproject.toml says why); a wheel has them inside.
if not (Path(__file__).parent / "commands").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
