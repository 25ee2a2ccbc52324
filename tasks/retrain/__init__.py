"""Retraining: when it is due, the frozen reference, and whether the challenger is better than the champion."""
