"""Train tables that nobody tuned, with the defaults, and compare with what a code without inputs would cost.

Which tables the defaults were tuned on, and which were left untouched until the defaults stood, is written down here first.
"""

TUNED = ("energy", "diabetes", "iris", "wine")
"""Looked at while choosing scalings, steps, learning rates and the start of the noise (energy: its first five splits)."""

UNTOUCHED = ("concrete", "yacht", "kin8nm", "breast_cancer", "linnerud")
"""Run once the defaults stood; nothing was changed for them."""
