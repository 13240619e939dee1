"""k-nearest-neighbour classification of features."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['knn_predict', 'knn_top1']

#: Queries whose similarities to the whole bank are in memory at a time.
CHUNK = 1024


@torch.no_grad()
def knn_predict(bank_ND: Tensor, bank_labels: Tensor, queries_MD: Tensor, k: int, temperature: float = 0.07) -> Tensor:
    """The class with the largest vote among the k most similar images of a bank.

    A neighbour counts exp(cosine / temperature), as in Wu et al., Unsupervised Feature Learning via Non-Parametric
    Instance Discrimination, CVPR 2018.

    Args:
        bank_ND: Features of labelled images.
        bank_labels: Their labels, (N,).
        queries_MD: Features of the images to classify.
        k: Neighbours, at most N.
        temperature: Temperature of the weights.

    Returns:
        A label per query, (M,).

    Raises:
        ValueError: k is not in 1..N.
    """
    if not 1 <= k <= len(bank_ND):
        raise ValueError(f'k must be in 1..{len(bank_ND)} (the images of the bank), got {k}')
    bank, classes = F.normalize(bank_ND.float(), dim=1).t(), int(bank_labels.max()) + 1
    found = []
    for queries in queries_MD.split(CHUNK):
        nearest, places = (F.normalize(queries.float(), dim=1) @ bank).topk(k, dim=1)
        # The largest similarity is subtracted before the exponential: a small temperature would overflow.
        weights = ((nearest - nearest[:, :1]) / temperature).exp().double()
        votes = torch.zeros(len(queries), classes, dtype=torch.double, device=weights.device)
        found.append(votes.scatter_add_(1, bank_labels[places], weights).argmax(dim=1))
    return torch.cat(found)


def knn_top1(
    bank_ND: Tensor, bank_labels: Tensor, queries_MD: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Accuracy of `knn_predict` in percent; the arguments are its own, and the queries' labels, (M,)."""
    return float((knn_predict(bank_ND, bank_labels, queries_MD, k, temperature) == labels).double().mean() * 100)
