"""mmcv's focal losses and their gradients, with the signatures of its compiled module.

The formulas are those of mmcv's CUDA kernels, floor of the logarithm and all, so that values agree where float32 is
coarse. mmcv has no CPU kernels for them.
"""

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # the smallest value that mmcv's kernels take logarithms of, whatever the type


def real(tensor: Tensor) -> Tensor:
    """float64 unchanged, everything else in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _class_weights(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """(N, 1): the weight of each target's class; 1 if there are none, and for a target that is not a class."""
    if weight.numel() == 0:
        return like.new_ones(())
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, weight[target.clamp(0, len(weight) - 1)].to(like), 1)[:, None]


def _is_class(target: Tensor, classes: int) -> Tensor:
    """(N, classes): where the class is the target."""
    return target[:, None] == torch.arange(classes, device=target.device)


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=TINY).log()


def _right_and_wrong(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the class is the target; probabilities of a right and of a wrong answer for the target."""
    p = 1 / (1 + torch.exp(-logits))
    is_class = _is_class(target, logits.shape[1])
    return is_class, torch.where(is_class, p, 1 - p), torch.where(is_class, 1 - p, p)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Sigmoid focal loss of each logit.

    Args:
        input: (N, C) logits.
        target: (N,) classes; the number of classes, or -1, means none of them.
        weight: (C,) per class, or empty.
        output: (N, C), written.
        gamma: Exponent of the modulating factor.
        alpha: Weight of positives, 1 - alpha that of negatives.
    """
    logits = real(input)
    is_class, right, wrong = _right_and_wrong(logits, target)
    term = wrong.pow(gamma) * _log(right)
    loss = torch.where(is_class, -alpha * term, (alpha - 1) * term)
    output.copy_(loss * _class_weights(weight, target, logits))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of `sigmoid_focal_loss_forward` by the logits, written into `grad_input`; arguments as there."""
    logits = real(input)
    is_class, right, wrong = _right_and_wrong(logits, target)
    term = wrong.pow(gamma) * (wrong - gamma * right * _log(right))
    gradient = torch.where(is_class, -alpha * term, (1 - alpha) * term)
    grad_input.copy_(gradient * _class_weights(weight, target, logits))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Softmax focal loss of each row.

    Args:
        input: (N, C) probabilities; mmcv has already applied the softmax.
        target: (N,) classes; negative ones are ignored.
        weight: (C,) per class, or empty.
        output: (N,), written.
        gamma: Exponent of the modulating factor.
        alpha: Weight of all.
    """
    probabilities = real(input)
    label = target.clamp(min=0)[:, None]
    p = probabilities.gather(1, label)
    loss = -alpha * (1 - p).pow(gamma) * _log(p) * _class_weights(weight, target, p)
    output.copy_(torch.where(target[:, None] >= 0, loss, 0)[:, 0])


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of `softmax_focal_loss_forward` by the logits behind the probabilities.

    Args:
        input: As in the forward pass.
        target: As in the forward pass.
        weight: As in the forward pass.
        buff: (N,), written: the factor that a row's gradients share.
        grad_input: (N, C), written.
        gamma: As in the forward pass.
        alpha: As in the forward pass.
    """
    probabilities = real(input)
    label = target.clamp(min=0)[:, None]
    p = probabilities.gather(1, label)
    rest = (1 - p).clamp(min=TINY)  # a negative power of 0 would be infinite, and its product with log(1) not a number
    factor = alpha * (gamma * rest.pow(gamma - 1) * p * _log(p) - (1 - p).pow(gamma))
    factor = torch.where(target[:, None] >= 0, factor * _class_weights(weight, target, p), 0)
    buff.copy_(factor[:, 0])
    grad_input.copy_(factor * (_is_class(target, input.shape[1]).to(p) - probabilities))
