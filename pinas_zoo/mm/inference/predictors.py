"""Networks for predictions: found by name, built, loaded strictly, run on batches of images.

mmdet's and mmseg's own inferencers are not used: they load loosely, use COCO's or Cityscapes' class names for unknown
ones, and stop at the first image that does not decode. Their test pipelines and `test_step` are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from pinas_zoo.data import FASHION_MNIST_CLASSES, SOURCES, Source, centre_view, normalise, open_source
from pinas_zoo.mm.inference.networks import load_network, named_classes, open_config, open_dense
from pinas_zoo.registry import type_name
from pinas_zoo.weights.download import SCHEME, find_weights
from pinas_zoo.weights.load import read_checkpoint
from pinas_zoo.weights.manifest import entries, find_entry

__all__ = ['Instances', 'PredictionSettings', 'Predictor', 'Ranking', 'RunLengths', 'Segments', 'open_predictor']

#: Class names by the manifest's data set, for classifiers whose files do not state them.
CLASSES = {'Fashion-MNIST': FASHION_MNIST_CLASSES}


#: A mask as pycocotools codes it: size and counts.
RunLengths = dict[str, Any]


@dataclass(frozen=True)
class Instances:
    """Objects of one image; masks of tiled pictures are run lengths.

    Shape: boxes (N, 4) as x1 y1 x2 y2 in px, labels and scores (N,), masks (N, H, W) bool.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | Sequence[RunLengths] | None


@dataclass(frozen=True)
class Segments:
    """A class for each pixel of one image. Shape: labels (H, W)."""

    labels: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """The likeliest classes of one image, best first, with their probabilities."""

    labels: list[int]
    scores: list[float]


Prediction = Instances | Segments | Ranking


@dataclass(frozen=True)
class PredictionSettings:
    """Which predictions are kept.

    Args:
        score_thr: Smallest score of an object, 0..1.
        topk: Number of classes in a classifier's ranking.
    """

    score_thr: float = 0.3
    topk: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.score_thr <= 1 or self.topk < 1:
            raise ValueError(f'score_thr must be in 0..1 and topk at least 1, got {self.score_thr} and {self.topk}')


@dataclass(frozen=True)
class Predictor:
    """A network with everything between an image and a prediction.

    Args:
        run: Predictions of a batch of BGR images, (H, W, 3) uint8.
        classes: Names by label.
        palette: RGB by label, if the weights or the data set define it.
        tileable: Whether parts of a picture can be predicted, as by detectors and segmentors.
    """

    run: Callable[[Sequence[np.ndarray]], list[Prediction]]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]] | None = None
    tileable: bool = True


def open_predictor(
    name: str,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    settings: PredictionSettings | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Predictor:
    """Opens a network by name.

    Args:
        name: A name of the manifest, a config file, or a timm name of this project.
        checkpoint: Its weights; required with a config, otherwise used instead of the named ones.
        device: Where it runs; None takes a GPU if there is one.
        settings: Which predictions are kept.
        cfg_options: Dotted keys that override the config.

    Raises:
        ValueError: The name is unknown, the weights do not fit, or an argument is missing or has no effect.
    """
    device, settings, entry = device or get_device(), settings or PredictionSettings(), entries().get(name)
    if entry is None and not name.endswith('.py'):
        known = [*entries(), *timm.list_models('pinas*')]
        if name.partition('.')[0] not in timm.list_models('pinas*'):
            raise ValueError(f'unknown model {name!r}; known: {", ".join(known)}, or a config with --checkpoint')
    if not name.endswith('.py') and (entry is None or entry.timm):
        if cfg_options:
            raise ValueError(f'--cfg-options {cfg_options}: {name} is a timm model, it has no config')
        return _timm_predictor(name, checkpoint, device, settings)
    cfg, checkpoint = open_config(name, checkpoint, cfg_options)
    if type_name(cfg.get('model') or {}) == 'Classifier':
        return _classifier(cfg, checkpoint, device, settings)
    return _dense(cfg, checkpoint, device, settings)


# ---- detectors and segmentors ----------------------------------------------------------------------------------------


def _dense(cfg: Config, checkpoint: str | Path, device: str, settings: PredictionSettings) -> Predictor:
    """mmdet's or mmseg's model behind its config's test pipeline."""
    network = open_dense(cfg, checkpoint, device)
    model, steps = network.model, network.steps
    for step in steps:
        if type_name(step) == 'LoadImageFromFile':
            step['type'] = 'LoadImageFromNDArray'
    pipeline = Compose(steps)

    def run(images: Sequence[np.ndarray]) -> list[Prediction]:
        samples = [pipeline({'img': image, 'img_id': 0}) for image in images]
        shapes = [tuple(sample['inputs'].shape) for sample in samples]
        found: dict[int, Prediction] = {}
        for shape in dict.fromkeys(shapes):  # segmentors stack images of one size only
            members = [index for index, other in enumerate(shapes) if other == shape]
            with torch.no_grad():
                outputs = model.test_step(pseudo_collate([samples[index] for index in members]))
            found |= {index: _prediction(output, settings) for index, output in zip(members, outputs, strict=True)}
        return [found[index] for index in range(len(images))]

    return Predictor(run, network.classes, network.palette)


def _prediction(sample: Any, settings: PredictionSettings) -> Prediction:
    if 'pred_sem_seg' in sample:
        return Segments(sample.pred_sem_seg.data[0].long().cpu().numpy())
    found = sample.pred_instances
    found = found[found.scores >= settings.score_thr].cpu()
    return Instances(found.bboxes, found.labels, found.scores, found.masks if 'masks' in found else None)


# ---- classifiers -----------------------------------------------------------------------------------------------------


def _ranked(
    net: nn.Module,
    view: Callable[[np.ndarray], Tensor],
    classes: Sequence[str],
    device: str,
    settings: PredictionSettings,
) -> Predictor:
    net = net.to(device).eval()

    def run(images: Sequence[np.ndarray]) -> list[Prediction]:
        with torch.no_grad():
            logits = net(torch.stack([view(np.ascontiguousarray(image[..., ::-1])) for image in images]).to(device))
        scores, labels = logits.float().softmax(dim=1).cpu().topk(min(settings.topk, logits.shape[1]))
        return [Ranking(label, score) for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]

    return Predictor(run, classes, tileable=False)


def _timm_predictor(name: str, checkpoint: str | Path | None, device: str, settings: PredictionSettings) -> Predictor:
    """A timm model of this project, in timm's evaluation geometry and with the weights' class names."""
    trained_on = ''
    if checkpoint is None:
        net: Any = timm.create_model(name, pretrained=True)
        entry = find_entry(f'{net.pretrained_cfg["architecture"]}.{net.pretrained_cfg["tag"]}')
        content, trained_on = read_checkpoint(find_weights(f'{SCHEME}{entry.name}'), tensors=False), entry.dataset
    else:
        content = read_checkpoint(find_weights(checkpoint))
        if 'fc.weight' not in content.state:
            raise ValueError(f'{checkpoint} contains no classifier (no fc.weight), only features')
        net = timm.create_model(name, checkpoint=checkpoint, num_classes=len(content.state['fc.weight']))
    classes = content.classes or net.pretrained_cfg.get('label_names') or CLASSES.get(trained_on, ())
    if not classes and (subset := infer_imagenet_subset(net)):
        info = ImageNetInfo(subset)
        classes = [info.index_to_description(index) for index in range(net.num_classes)]
    transform = create_transform(**resolve_data_config(net.pretrained_cfg))
    classes = named_classes(classes, net.num_classes, name)
    return _ranked(net, lambda image: transform(Image.fromarray(image)), classes, device, settings)


def _classifier(cfg: Config, checkpoint: str | Path, device: str, settings: PredictionSettings) -> Predictor:
    """`pinas_zoo.Classifier` behind the evaluation view of its config's test set, which need not exist."""
    model, meta = load_network(cfg, checkpoint, device)
    view, count = cfg.test_dataloader.dataset, model.net.num_classes
    kind: Any = SOURCES[view.source.kind][0]
    source: Source | type[Source] = kind if isinstance(kind, type) else Source
    with suppress(OSError, ValueError):  # the class alone knows mean and std, but no names
        source = open_source(view.source)
    mean, std = view.get('mean') or source.mean, view.get('std') or source.std
    classes = named_classes(meta.get('classes') or source.classes, count, str(checkpoint))

    def look(image: np.ndarray) -> Tensor:
        pixels = centre_view(torch.from_numpy(image).permute(2, 0, 1), view.size, view.get('crop_pct', 0.875))
        return normalise(pixels, mean, std)

    return _ranked(model.net, look, classes, device, settings)
