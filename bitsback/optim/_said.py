"""Warnings and errors of the optimisers for common mistakes."""

__all__ = ["FOREIGN_CLIPPING", "SUM_LOSS", "WEIGHT_DECAY"]

SUM_LOSS = (
    "the loss looks like a sum over the batch, and the optimiser weighs the KL for a mean over examples: take the mean "
    "(reduction='mean'), or say with examples= what one unit of the loss is averaged over"
)
FOREIGN_CLIPPING = (
    "the gradients of three steps have one and the same norm, {norm:.3g}: something clips them before the step, which sees no "
    "KL and so multiplies its weight; switch it off, and give this optimiser max_grad_norm={norm:.3g}, which clips both alike"
)
WEIGHT_DECAY = (
    "weight_decay is a Gaussian prior, and priors have their own place: bayesianize(network, prior={'kind': 'gaussian', "
    "'scale': s, 'learn': 'none'}) pulls means by 1 / (N s^2)"
)
