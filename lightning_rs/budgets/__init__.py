"""How estimation samples are spent: a fixed number an image, or a sound rule that stops earlier."""

from lightning_rs.budgets.base import Budget, FixedSamples, Group, Outcome, Task
from lightning_rs.budgets.enumerated import DecideGridRadius
from lightning_rs.budgets.sequential import DecideRadius, RandomizedBound, StagedSamples
from lightning_rs.setting import Selection

__all__ = [
    "Budget",
    "DecideGridRadius",
    "DecideRadius",
    "FixedSamples",
    "Group",
    "Outcome",
    "RandomizedBound",
    "Selection",
    "StagedSamples",
    "Task",
]
