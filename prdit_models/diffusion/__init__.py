"""Processes, and how volumes are drawn from noise: schedules, steppers, samplers, guidance."""
