"""The learning rate over a training, as a share of its configured value."""


def decay_factor(step: int, steps: int, decay: float) -> float:
    """Constant, then linear to 0 over the last `decay` of a training: min(1, (N - n)/(decay·N)) at step n of N.

    The step after the last one would have rate 0, so no step is spent on it. Source: constant rate with linear cooldown, Hägele et
    al. 2024, without warm-up.

    Args:
        step: n, 0-based, in [0, N).
        steps: N >= 1.
        decay: share of the training, in [0, 1]; 0 keeps the rate constant (as published).
    Raises: ValueError: for values out of range.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}; expected a share of the training in [0, 1], such as 0.6.")
    if not 0 <= step < steps:
        raise ValueError(f"step is {step}; expected 0 to {steps - 1}.")
    return 1.0 if decay == 0.0 else min(1.0, (steps - step) / (decay * steps))
