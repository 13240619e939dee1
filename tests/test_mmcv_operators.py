"""The operators that replace `mmcv._ext`, against their definitions and, where one is found, a compiled mmcv."""

from __future__ import annotations

import itertools

import mmcv_calls as calls
import mmcv_naive as naive
import pytest
import torch
from torch import Tensor

from pinas_zoo.mmcv_ext import operators

COMPILED, WHY_NOT = naive.compiled_operators()
compiled = pytest.mark.skipif(COMPILED is None, reason=WHY_NOT)
TYPES = pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=('float32', 'float64'))
HALVES = pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16), ids=('float16', 'bfloat16'))
BOXES = pytest.mark.parametrize('kind', ('random', 'ties', 'degenerate', 'empty'))
ROIS = pytest.mark.parametrize('kind', ('random', 'edges', 'empty'))
OFFSETS = pytest.mark.parametrize('offset', (0, 1))
METHODS = pytest.mark.parametrize('method', (0, 1, 2), ids=('naive', 'linear', 'gaussian'))
RATIOS = pytest.mark.parametrize('ratio', (0, 2))
ALIGNED = pytest.mark.parametrize('aligned', (True, False), ids=('aligned', 'legacy'))
GAMMAS = pytest.mark.parametrize('gamma', (2.0, 0.5, 0.0))
LOSSES = pytest.mark.parametrize('loss', ('sigmoid_focal_loss', 'softmax_focal_loss'))


def close(value: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)


def equal(value: Tensor, wanted: Tensor) -> None:
    close(value, wanted, 0)


def features(dtype: torch.dtype = torch.float32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 44, 36, generator=torch.Generator().manual_seed(4)).to(dtype)


# ---- suppression -----------------------------------------------------------------------------------------------------


@OFFSETS
@TYPES
@BOXES
def test_nms_is_the_definition(kind: str, dtype: torch.dtype, offset: int) -> None:
    boxes, scores = calls.boxes_and_scores(kind, dtype)
    for threshold in (0.5, 0.6, 0.1):
        kept = operators.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        assert kept.dtype == torch.int64
        assert kept.tolist() == naive.nms(boxes, scores, threshold, offset)
    assert kind == 'empty' or 0 < len(kept) < len(boxes)


def test_an_overlap_equal_to_the_threshold_stays():
    """mmcv compares in float32, where an IoU of 0.6 is not above a threshold of 0.6; in float64 it would be."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    assert operators.nms(boxes, torch.tensor([0.9, 0.8]), iou_threshold=0.6, offset=0).tolist() == [0, 1]


@compiled
@BOXES
def test_nms_is_bit_equal_to_compiled(kind: str) -> None:
    boxes, scores = calls.boxes_and_scores(kind, count=1000)
    for offset, threshold in itertools.product((0, 1), (0.3, 0.5, 0.6, 0.7)):
        kept = operators.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        equal(kept, COMPILED.nms(boxes, scores, iou_threshold=threshold, offset=offset))


@HALVES
def test_nms_of_halves_is_that_of_their_values(dtype: torch.dtype) -> None:
    boxes, scores = calls.boxes_and_scores('random', dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        kept = operators.nms(boxes, scores, iou_threshold=0.5, offset=0)
    for wide in (boxes.float(), boxes.double()):  # boxes and scores of two types, too
        equal(kept, operators.nms(wide, scores, iou_threshold=0.5, offset=0))


@METHODS
@OFFSETS
@TYPES
@pytest.mark.parametrize('kind', ('random', 'degenerate', 'empty'))
def test_softnms_is_the_definition(kind: str, dtype: torch.dtype, offset: int, method: int) -> None:
    boxes, scores = calls.boxes_and_scores(kind, dtype)
    dets, kept = calls.softnms(operators, boxes, scores, 0.3, method, offset)
    rows, indices = naive.softnms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == indices
    close(dets, torch.tensor(rows, dtype=dtype).reshape(-1, 5), 1e-5 if dtype == torch.float32 else 1e-12)


@compiled
@METHODS
@pytest.mark.parametrize('kind', ('random', 'ties', 'empty'))
def test_softnms_equals_compiled(kind: str, method: int) -> None:
    boxes, scores = calls.boxes_and_scores(kind, count=300)
    for offset in (0, 1):
        dets, kept = calls.softnms(operators, boxes, scores, 0.3, method, offset)
        wanted, indices = calls.softnms(COMPILED, boxes, scores, 0.3, method, offset)
        equal(kept, indices)
        close(dets, wanted, 1e-6)


# ---- RoIAlign --------------------------------------------------------------------------------------------------------


@ALIGNED
@RATIOS
@TYPES
@ROIS
def test_roi_align_is_the_definition(kind: str, dtype: torch.dtype, ratio: int, aligned: bool) -> None:
    image, rois = features(torch.float64).requires_grad_(), calls.rois(kind, torch.float64)
    wanted = naive.roi_align(image, rois, (3, 2), 0.5, ratio, aligned)
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(wanted, image, grad) if kind != 'empty' else (torch.zeros_like(image),)
    pooled, backward = calls.roi_align(operators, image.detach().to(dtype), rois.to(dtype), (3, 2), 0.5, ratio, aligned)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    close(pooled, wanted.detach().to(dtype), tolerance)
    close(backward(grad.to(dtype)), gradient.to(dtype), tolerance)


@compiled
@TYPES
@ROIS
def test_roi_align_is_bit_equal_to_compiled(kind: str, dtype: torch.dtype) -> None:
    for scale, ratio, aligned in itertools.product((0.5, 0.1), (0, 2), (True, False)):
        settings = (features(dtype, 16), calls.rois(kind, dtype), (7, 7), scale, ratio, aligned)
        pooled, backward = calls.roi_align(operators, *settings)
        wanted, wanted_backward = calls.roi_align(COMPILED, *settings)
        equal(pooled, wanted)
        grad = torch.randn_like(pooled)
        equal(backward(grad), wanted_backward(grad))


@HALVES
def test_roi_align_of_halves_is_computed_in_float32(dtype: torch.dtype) -> None:
    image, rois = features(dtype), calls.rois('random')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        pooled, backward = calls.roi_align(operators, image, rois, (3, 2), 0.5, 0, True)
    wanted, wanted_backward = calls.roi_align(operators, image.float(), rois, (3, 2), 0.5, 0, True)
    equal(pooled, wanted.to(dtype))
    equal(backward(torch.ones_like(pooled)), wanted_backward(torch.ones_like(wanted)).to(dtype))


def test_roi_align_of_any_memory_format():
    settings = (calls.rois('random'), (3, 2), 0.5, 0, True)
    pooled, _ = calls.roi_align(operators, features(), *settings)
    other, _ = calls.roi_align(operators, features().contiguous(memory_format=torch.channels_last), *settings)
    equal(other, pooled)


def test_roi_align_by_maxima_is_refused():
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*bash tools/setup_env.sh --mmcv-ops"):
        calls.roi_align(operators, features(), calls.rois('random'), (3, 2), 0.5, 2, True, pool_mode=0)


# ---- focal losses ----------------------------------------------------------------------------------------------------
# mmcv compiles them for GPUs only: on a CPU there is nothing to compare with but their definition.


@pytest.mark.parametrize('weighted', (False, True), ids=('plain', 'weighted'))
@GAMMAS
@TYPES
@LOSSES
def test_focal_loss_is_the_definition(loss: str, dtype: torch.dtype, gamma: float, weighted: bool) -> None:
    """In float32 1 - p has lost digits where p is nearly 1, in mmcv's kernels too: 1e-4 there."""
    weight = torch.linspace(0.5, 2, 7, dtype=dtype) if weighted else None
    for rows in (40, 0):
        logits, target = calls.logits_and_targets(7, dtype, rows)
        if loss == 'softmax_focal_loss':
            target[target == 7] = -1  # it ignores negative targets and knows no background
        exact = logits.double().requires_grad_()
        wanted = getattr(naive, loss)(exact, target, gamma, 0.25, weight)
        (gradient,) = torch.autograd.grad(wanted.sum(), exact)
        value, ours = getattr(calls, loss)(operators, logits, target, gamma, 0.25, weight)
        close(value, wanted.detach().to(dtype), 1e-4 if dtype == torch.float32 else 1e-6)
        close(ours, gradient.to(dtype), 1e-5)


@HALVES
@LOSSES
def test_focal_loss_of_halves_is_computed_in_float32(loss: str, dtype: torch.dtype) -> None:
    logits, target = calls.logits_and_targets(7, dtype)
    value, gradient = getattr(calls, loss)(operators, logits, target.clamp(max=6), 2.0, 0.25, None)
    wanted, wanted_gradient = getattr(calls, loss)(operators, logits.float(), target.clamp(max=6), 2.0, 0.25, None)
    assert value.dtype == gradient.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps  # mmcv takes the softmax in the half type
    close(value.float(), wanted, tolerance)
    close(gradient.float(), wanted_gradient, tolerance)


@GAMMAS
@LOSSES
def test_focal_loss_of_huge_logits_is_finite(loss: str, gamma: float) -> None:
    logits = torch.tensor([[300.0, -300, 0], [-300.0, 300, 0], [90.0, 17, -17]])
    for target in (torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])):
        value, gradient = getattr(calls, loss)(operators, logits, target, gamma, 0.25, None)
        assert value.isfinite().all() and gradient.isfinite().all()
        assert value.amin() >= 0 and value.amax() <= 88  # the logarithm's floor: that of float32's least normal number


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does():
    boxes, scores = calls.boxes_and_scores('random')
    for offset in (0, 1):
        kept = operators.nms(boxes.cuda(), scores.cuda(), iou_threshold=0.5, offset=offset)
        assert kept.is_cuda
        equal(kept.cpu(), operators.nms(boxes, scores, iou_threshold=0.5, offset=offset))
    for ratio, aligned, kind in itertools.product((0, 2), (True, False), ('random', 'edges', 'empty')):
        settings = ((3, 2), 0.5, ratio, aligned)
        pooled, backward = calls.roi_align(operators, features().cuda(), calls.rois(kind).cuda(), *settings)
        wanted, wanted_backward = calls.roi_align(operators, features(), calls.rois(kind), *settings)
        close(pooled.cpu(), wanted, 1e-5)
        close(backward(torch.ones_like(pooled)).cpu(), wanted_backward(torch.ones_like(wanted)), 1e-5)
    logits, target = calls.logits_and_targets(7)
    for call in (calls.sigmoid_focal_loss, calls.softmax_focal_loss):
        ours = call(operators, logits.cuda(), target.clamp(max=6).cuda(), 2.0, 0.25, torch.ones(7).cuda())
        for value, wanted in zip(ours, call(operators, logits, target.clamp(max=6), 2.0, 0.25, torch.ones(7))):
            close(value.cpu(), wanted, 1e-5)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    image, rois = features().cuda(), calls.rois('random').cuda()
    logits, target = (tensor.cuda() for tensor in calls.logits_and_targets(7))
    weight = torch.ones(7, device='cuda')
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        pooled, backward = calls.roi_align(operators, image, rois, (3, 2), 0.5, 0, True)
        backward(pooled)
        calls.sigmoid_focal_loss(operators, logits, target, 2.0, 0.25, weight)
        calls.softmax_focal_loss(operators, logits, target.clamp(max=6), 2.0, 0.25, weight)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('device', ('cpu', pytest.param('cuda', marks=pytest.mark.gpu)))
def test_gradient_with_deterministic_kernels(device: str) -> None:
    """torchvision has no deterministic kernel on a GPU: the gradient is computed on the CPU, always the same."""
    image, rois = features(channels=16).to(device), calls.rois('random').to(device)
    pooled, backward = calls.roi_align(operators, image, rois, (7, 7), 0.5, 2, True)
    plain = backward(pooled)
    torch.use_deterministic_algorithms(True)
    try:
        once, again = backward(pooled), backward(pooled)
    finally:
        torch.use_deterministic_algorithms(False)
    equal(once, again)
    close(once, plain, 0 if device == 'cpu' else 1e-5)


# ---- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ('deform_conv_forward', 'ms_deform_attn_forward', 'nms_rotated', 'of_a_later_mmcv'))
def test_what_is_not_here_raises_when_it_is_called(name: str) -> None:
    assert hasattr(operators, name)
    with pytest.raises(NotImplementedError, match=f'{name} is not available.*bash tools/setup_env.sh --mmcv-ops'):
        getattr(operators, name)(torch.zeros(1), size=3)
    assert not hasattr(operators, '_private')
