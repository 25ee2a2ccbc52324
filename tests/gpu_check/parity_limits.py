"""How far a device may be from what the parity sets say, in both precisions, and why so far.

fp32. The sets' own tolerances are about eight times what one CPU's float32 is off by, and another machine's tables are granted
`MACHINE` of the largest value. A GPU sums in another order and its exp and cos are good to two units in the last place instead of
one, so it is granted `DEVICE_FACTOR` times both. Products in TF32 are ten times farther off, a wrong layout a thousand times.

bf16 (autocast). Eight bits leave 0.4 % per rounding; of the largest value a CPU's autocast is off by up to 3.1 % on our own set
and 2.6 % on the recorded arrays (samplers of a few large steps; single networks stay below 1.8 %). Twice that is granted.
"""

from tests.parity.own.frozen import MACHINE

DEVICE_FACTOR = 8.0
BF16 = 0.06
# Of the time table itself: two units in the last place of a frequency near 1 (1.2e-7) times t = 999, and some for cos.
TIME_TABLE = 2e-4


def device_limit(tolerance: float, scale: float) -> float:
    """What a device is granted in fp32 where the CPU is granted a tolerance; nothing where equality is asked (scale 0).

    Args:
        tolerance: of the CPU in float32, in the error's unit.
        scale: the largest reference value, in the error's unit.
    """
    return DEVICE_FACTOR * (tolerance + MACHINE * scale)
