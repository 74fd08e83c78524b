"""Code lengths as numbers: what a code of the labels costs, in bits."""
