"""In-place distillation: paths learn from the scores of another path of the same step and supernet."""

from torch import Tensor

__all__ = ['soft_cross_entropy']


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_j t_j log softmax(z)_j, averaged over the images; its gradient is that of KL(t, softmax(z)).

    The value includes the entropy of the targets, so it is comparable neither to a KL divergence nor to the
    cross-entropy with a hard label.

    Args:
        logits: Scores z of the path that learns.
        targets: Probabilities t of the path that teaches, without gradient.

    Shape:
        (N, classes) each; returns a scalar.
    """
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
