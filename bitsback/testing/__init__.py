"""Contract tests for user-defined priors, likelihoods and layers.

Each function takes an object and raises AssertionError with an explanation if the object violates the contract of its base
class. They need no test framework.
"""

from bitsback.testing._layers import check_layer
from bitsback.testing._likelihoods import check_likelihood
from bitsback.testing._priors import check_prior

__all__ = ["check_layer", "check_likelihood", "check_prior"]
