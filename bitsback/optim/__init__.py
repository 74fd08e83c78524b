"""torch optimisers of posteriors: each step adds the KL's gradient, moves means and log stds, and writes the next draw.

>>> import torch, bitsback
>>> model = bitsback.bayesianize(torch.nn.Linear(4, 2), prior="laplace")
>>> optimizer = Adam(model, lr=1e-3, log_std_lr=5e-3, examples=100)
>>> torch.nn.functional.cross_entropy(model(torch.randn(10, 4)), torch.zeros(10, dtype=torch.long)).backward()
>>> optimizer.step()
>>> optimizer.zero_grad()
"""

from bitsback.optim._adam import Adam
from bitsback.optim._ivon import IVON
from bitsback.optim.base import PosteriorOptimizer
from bitsback.optim.variational import Variational

__all__ = ["IVON", "Adam", "PosteriorOptimizer", "Variational"]
