"""What makers say of their cards: the rate of matrix products."""

import re

# Dense TFLOPs of tensor cores in bfloat16 with float32 sums, and of float32 without TF32, from the makers' data sheets. The first
# pattern that is found in the name counts, so narrower names come first. A slice of a card (MIG) and laptop models are not known.
PEAK_TFLOPS = (
    (r"H100 PCIe", 756.0, 51.2),
    (r"H100 NVL", 835.0, 60.0),
    (r"(H100|H200|H800|GH200)\b", 989.0, 66.9),
    (r"H20\b", 148.0, 44.0),
    (r"B200\b", 2250.0, 75.0),
    (r"A(100|800)\b", 312.0, 19.5),
    (r"A30\b", 165.0, 10.3),
    (r"A40\b", 149.7, 37.4),
    (r"A10G\b", 70.0, 35.0),
    (r"A10\b", 125.0, 31.2),
    (r"L40S\b", 362.0, 91.6),
    (r"L40\b", 181.0, 90.5),
    (r"L4\b", 121.0, 30.3),
    (r"RTX 6000 Ada", 364.0, 91.1),
    (r"RTX A6000", 154.8, 38.7),
    (r"RTX 5090\b", 209.5, 104.8),
    (r"RTX 4090\b", 165.2, 82.6),
    (r"RTX 3090\b", 71.0, 35.6),
)
_UNKNOWN = r"MIG|Laptop|Max-Q"


def peak_tflops(name: str, precision: str) -> float | None:
    """What a card's maker says of it; None for cards that are not in the table."""
    if re.search(_UNKNOWN, name):
        return None
    for pattern, bf16, fp32 in PEAK_TFLOPS:
        if re.search(rf"\b{pattern}", name):
            return bf16 if precision == "bf16" else fp32
    return None
