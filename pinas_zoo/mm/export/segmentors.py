"""mmseg's segmentors as networks from images to logits or labels of each pixel, for export."""

import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

__all__ = ['Segmentor']


class Segmentor(nn.Module):
    """A segmentor that sees whole images; windows and several scales of a config's test are left to the caller.

    Args:
        model: mmseg's EncoderDecoder.
        labels: Return the class of each pixel instead of the logits.

    Shape:
        (N, 3, H, W), normalised -> (N, num_classes, H, W) logits, or (N, H, W) labels

    Raises:
        ValueError: The model has no single decode head.
    """

    def __init__(self, model: BaseModel, labels: bool = False) -> None:
        super().__init__()
        if isinstance(getattr(model, 'decode_head', None), (nn.ModuleList, type(None))):
            raise ValueError(f'{type(model).__name__} cannot be exported: it has no single decode head')
        self.model, self.labels = model.eval(), labels
        self.outputs = {'labels' if labels else 'logits': self.axes}

    @property
    def axes(self) -> dict[int, str]:
        """Dynamic axes of the output."""
        first = 1 if self.labels else 2
        return {0: 'batch', first: 'height', first + 1: 'width'}

    def forward(self, x: Tensor) -> Tensor:
        head = self.model.decode_head
        logits = head(self.model.extract_feat(x))
        logits = F.interpolate(logits, x.shape[2:], mode='bilinear', align_corners=head.align_corners)
        if not self.labels:
            return logits
        return (logits.sigmoid() > head.threshold)[:, 0].long() if head.out_channels == 1 else logits.argmax(dim=1)
