import os

import torch

# Triton reads this when a kernel is defined. With a GPU the kernels run on it, for real.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
