"""Class weights, which no code has."""

__all__ = ["NO_WEIGHTS", "WEIGHTS"]

WEIGHTS = ("class_weight", "class_weights", "pos_weight", "weight", "weights")
"""Names of class weights in losses."""

NO_WEIGHTS = (
    "a code has no class weights: it spends -log2 p bits on every label, and with weights it would be no code; to even out the "
    "classes, change the data, such as by repeating examples of rare ones"
)
"""Reason why they are refused."""
