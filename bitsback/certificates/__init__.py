"""Certificates: upper bounds on the probability of error on new examples that hold with a stated confidence."""

from bitsback.certificates._certificate import Certificate, certify_file, certify_posterior
from bitsback.certificates._kl_inverse import bernoulli_kl, kl_inverse
from bitsback.certificates.bounds import complexity, draws_bound, file_length_bits, pac_bayes_bound

__all__ = [
    "Certificate",
    "bernoulli_kl",
    "certify_file",
    "certify_posterior",
    "complexity",
    "draws_bound",
    "file_length_bits",
    "kl_inverse",
    "pac_bayes_bound",
]
