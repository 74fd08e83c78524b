"""Contracts that other people can run: joining a family is one line in a list.

Each function takes a member of a family and raises AssertionError, saying what broke, when the member does not keep the
family's contract. They need nothing but this package; run them from pytest, or from anywhere.
"""

from bitsback.testing._layers import check_layer
from bitsback.testing._likelihoods import check_likelihood
from bitsback.testing._priors import check_prior

__all__ = ["check_layer", "check_likelihood", "check_prior"]
