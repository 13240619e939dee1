"""`pinas probe`: features once per network, then kNN and linear classifiers with all and with few labels."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinas_zoo.data import Source, SubsetSource, open_source
from pinas_zoo.data.fixed_batches import FixedBatches
from pinas_zoo.data.supervised import require_labels
from pinas_zoo.probes.knn import knn_predict
from pinas_zoo.probes.linear import fit_linear, hold_out
from pinas_zoo.probes.targets import Target

__all__ = ['Images', 'Probe', 'ProbeResult', 'Settings', 'probe', 'wilson']

#: Statistics of the bootstrap over draws and test images.
RESAMPLES = 1000


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        probes: Of 'knn' and 'linear'.
        k: Neighbours; fewer where fewer images are labelled.
        temperature: Temperature of the neighbours' votes.
        shares: Shares of the training labels, besides all of them.
        draws: Draws of labelled images per share; every class keeps at least one.
        seed: Seed of the draws.
    """

    probes: tuple[str, ...] = ('knn', 'linear')
    k: int = 20
    temperature: float = 0.07
    shares: tuple[float, ...] = (0.01, 0.1)
    draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.probes or set(self.probes) - {'knn', 'linear'}:
            raise ValueError(f'probes must be among knn and linear, got {self.probes}')
        if self.k < 1 or self.draws < 1 or any(not 0 < share < 1 for share in self.shares):
            raise ValueError(
                f'k and draws must be at least 1 and shares in (0, 1), got {self.k}, {self.draws}, {self.shares}'
            )


@dataclass(frozen=True)
class Probe:
    """Top-1 of one probe in percent, with its 95 % interval.

    Args:
        probe: 'knn' or 'linear'.
        share: Share of the training labels; 1 for all.
        labelled: Labelled images per draw.
        top1: Accuracy; the mean over the draws.
        low: Lower end of the 95 % interval: Wilson's over the test images for all labels, else a bootstrap over draws
            and test images.
        high: Its upper end.
        draws: Accuracy of each draw.
        penalties: L2 penalty of each draw's linear classifier.
    """

    probe: str
    share: float
    labelled: int
    top1: float
    low: float
    high: float
    draws: tuple[float, ...]
    penalties: tuple[float, ...] = ()


@dataclass(frozen=True)
class ProbeResult:
    """The probes of one network."""

    name: str
    kind: str
    arch: str | None
    features: int
    input: dict[str, Any]
    seconds: float
    probes: list[Probe] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Images:
    """Training and test images of a probe, in the geometry and normalisation of each network.

    Args:
        train: Labelled training images: a source or its spec.
        test: Labelled test images with the same classes.
        batch_size: Images per batch.
        device: Device of the batches.
        num_workers: Processes that decode.
        size: Side in px; None for the networks' own.

    Raises:
        ValueError: Images have no label, or the classes differ.
    """

    def __init__(
        self,
        train: Source | Mapping[str, Any],
        test: Source | Mapping[str, Any],
        batch_size: int = 250,
        device: str = 'cpu',
        num_workers: int = 0,
        size: int | None = None,
    ) -> None:
        self.train, self.test = open_source(train), open_source(test)
        for source in (self.train, self.test):
            require_labels(source)
        if tuple(self.train.classes) != tuple(self.test.classes):
            raise ValueError(
                f'training images have the classes {self.train.classes[:5]}, test images {self.test.classes[:5]}: the '
                'two must have the same list (settings classes of a folder)'
            )
        self.batch_size, self.device, self.num_workers, self.size = batch_size, device, num_workers, size
        self.opened: dict[str, FixedBatches] = {}

    def view(self, preprocess: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `SupervisedView` for a network's preprocessing; what it does not state is the source's."""
        found: dict[str, Any] = {key: preprocess[key] for key in ('mean', 'std', 'crop_pct') if key in preprocess}
        side = self.size or tuple(preprocess['input_size'])[1:]
        return {'size': side, 'mean': self.train.mean, 'std': self.train.std} | found

    def batches(self, split: str, preprocess: Mapping[str, Any]) -> FixedBatches:
        """Batches of images and labels; decoded once for networks with equal preprocessing."""
        view, source = self.view(preprocess), self.train if split == 'train' else self.test
        key = repr((split, sorted(view.items())))
        if key not in self.opened:
            self.opened[key] = FixedBatches(
                {'source': source, **view},
                self.batch_size,
                num_workers=self.num_workers,
                device=self.device,
                labelled=True,
            )
        return self.opened[key]

    def calibration(self, preprocess: Mapping[str, Any], count: int, seed: int) -> Iterable[Tensor]:
        """Batches of some training images without labels, for BN re-estimation."""
        count = min(count, len(self.train))
        view = {'source': SubsetSource(self.train, seed=seed, limit=count), **self.view(preprocess)}
        size = min(self.batch_size, count)  # whole batches: BN over a small remainder would differ
        return FixedBatches(view, size, count // size, device=self.device, num_workers=self.num_workers)


@torch.no_grad()
def extract(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features and labels. Shape: (N, D), (N,)"""
    pairs = [(net(images).float(), labels) for images, labels in batches]
    return torch.cat([features for features, _ in pairs]), torch.cat([labels for _, labels in pairs])


def probe(target: Target, images: Images, settings: Settings) -> ProbeResult:
    """Probes one network.

    Args:
        target: The network; it is moved to the device of the images.
        images: Training and test images.
        settings: What is measured.
    """
    began = time.perf_counter()
    net = target.net.to(images.device).eval()
    train = extract(net, images.batches('train', target.preprocess))
    test = extract(net, images.batches('test', target.preprocess))
    classes = len(images.train.classes) or int(max(train[1].max(), test[1].max())) + 1
    found = [one for kind in settings.probes for one in _probes(kind, train, test, classes, settings)]
    stated = images.view(target.preprocess)
    seconds = round(time.perf_counter() - began, 2)
    return ProbeResult(target.name, target.kind, target.arch, train[0].shape[1], stated, seconds, found)


def _probes(
    kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, settings: Settings
) -> Iterator[Probe]:
    features, labels = train
    hits, penalty = _hits(kind, features, labels, test, classes, settings)
    low, high = wilson(int(hits.sum()), len(hits))
    top1 = 100 * float(hits.mean())
    yield Probe(kind, 1.0, len(labels), top1, low, high, (top1,), penalty)
    for share in settings.shares:
        rows: list[np.ndarray] = []
        used: tuple[float, ...] = ()
        count = 0
        for draw in range(settings.draws):
            chosen = few(labels, share, settings.seed + draw)
            count = len(chosen)
            hits, penalty = _hits(kind, features[chosen], labels[chosen], test, classes, settings)
            rows.append(hits)
            used += penalty
        low, high = bootstrap(np.stack(rows), settings.seed)
        draws = tuple(100 * float(row.mean()) for row in rows)
        yield Probe(kind, share, count, float(np.mean(draws)), low, high, draws, used)


def _hits(
    kind: str, features: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], classes: int, settings: Settings
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Which test images are classified rightly, and the linear classifier's penalty."""
    if kind == 'knn':
        predicted = knn_predict(features, labels, test[0], min(settings.k, len(labels)), settings.temperature)
        return (predicted == test[1]).cpu().numpy(), ()
    fitted = fit_linear(features, labels, classes, seed=settings.seed)
    return (fitted.predict(test[0]) == test[1]).cpu().numpy(), (fitted.penalty,)


def few(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices of a share of each class, rounded down, at least one image of each.

    Args:
        labels: Labels, (N,).
        share: Share in (0, 1).
        seed: Seed of the draw.
    """
    mask = hold_out(labels, share, seed)
    draw = torch.Generator().manual_seed(seed)
    for label in set(labels.unique().tolist()) - set(labels[mask].unique().tolist()):
        places = (labels == label).nonzero().flatten()
        mask[places[torch.randint(len(places), (1,), generator=draw).item()]] = True
    return mask.nonzero().flatten()


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy, in percent."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(method='wilson')
    return 100 * float(interval.low), 100 * float(interval.high)


def bootstrap(hits_DM: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean accuracy over draws and test images, both resampled, in percent.

    Args:
        hits_DM: Whether each draw's classifier is right on each test image.
        seed: Seed of the resampling.
    """
    rng = np.random.default_rng([seed, 23])
    draws, images = hits_DM.shape
    means = [
        hits_DM[rng.integers(draws, size=draws)].mean(axis=0)[rng.integers(images, size=images)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return 100 * float(low), 100 * float(high)


def table(results: Sequence[ProbeResult]) -> str:
    """The results as text: a row per network, a column per probe."""
    columns = list(dict.fromkeys((p.probe, p.share) for result in results for p in result.probes))
    heads = [f'{kind}, {"all" if share == 1 else f"{100 * share:g} %"} labels' for kind, share in columns]
    cells = [['network', 'features', *heads]]
    for result in results:
        by = {(p.probe, p.share): f'{p.top1:.2f} [{p.low:.2f}, {p.high:.2f}]' for p in result.probes}
        cells.append([result.name, str(result.features), *(by.get(column, '-') for column in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
