"""Plain PyTorch: networks, diffusion processes and samplers, model families, intensity mapping, metrics."""

import os

from prdit_models.processor import processor

if "GenuineIntel" in processor():
    # With several threads MKL would split long sums differently for small and large batches, and a volume's values
    # would depend on how many are drawn with it. Read at the first product; measured to cost nothing.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
