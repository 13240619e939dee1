"""Training-free scores of any path of any space: AZ-NAS, synflow, NASWOT. Written from the papers and public facts.

    expressivity   E = sum_l e_l,  e_l: entropy of the normalised eigenvalues of the features' covariance after block l
    progressivity  P = min_l e_{l+1} - e_l
    trainability   T = mean_l (2 - s_l - 1 / s_l),  s_l: largest singular value of G_in' G_out / n, G_out random signs
    AZ-NAS         sum over E, P, T and the MACs of log(rank / paths): a score of a path among others
    synflow        sum |w dR/dw| for R = sum f(1; |w|): absolute weights, input of ones, no BN
    NASWOT         log |det K|,  K_ij: ReLUs that are equally on or off for images i and j

AZ-NAS: Lee and Ham, CVPR 2024. synflow: Tanaka et al., 2020, as a score by Abdelfattah et al., ICLR 2021. NASWOT:
Mellor et al., ICML 2021. A higher score predicts a better path.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pinas_zoo.files import append_lines, read_lines
from pinas_zoo.models.cost import CostTable
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.ranking.truth import Truth
from pinas_zoo.space import Arch, SearchSpace

__all__ = [
    'PROXIES',
    'az_nas_parts',
    'az_nas_ranks',
    'extend_proxies',
    'naswot',
    'new_network',
    'proxies_of',
    'proxy_scores',
    'synflow',
]

#: The scores by their names in tables.
PROXIES = {'aznas': 'AZ-NAS', 'synflow': 'synflow', 'naswot': 'NASWOT'}


def new_network(arch: Arch, space: SearchSpace, in_chans: int, num_classes: int, seed: int) -> PiNASNet:
    """A network of a path at initialisation: Kaiming-normal weights by fan-in, biases 0, BN 1 and 0.

    The blocks do not start as their shortcuts, since all paths would then be equal.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PiNASNet(arch, space, num_classes=num_classes, in_chans=in_chans)
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='relu')
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _BatchNorm):
                module.reset_parameters()
    return net.train()


def proxy_scores(
    space: SearchSpace,
    archs: Sequence[Arch],
    images: Tensor,
    num_classes: int,
    seed: int = 0,
    names: Sequence[str] = tuple(PROXIES),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Scores paths at one initialisation.

    Args:
        space: The space.
        archs: The paths; AZ-NAS ranks them among each other.
        images: A batch of network inputs, (N, C, H, W).
        num_classes: Classes of the networks' heads.
        seed: Seed of weights and random signs.
        names: Keys of `PROXIES`.
        progress: Called after each path with the number done.

    Returns:
        By name the score of each path.

    Raises:
        ValueError: A name is unknown.
    """
    if unknown := set(names) - set(PROXIES):
        raise ValueError(f'unknown scores {sorted(unknown)}, allowed: {", ".join(PROXIES)}')
    size, in_chans = (int(images.shape[-2]), int(images.shape[-1])), images.shape[1]
    costs = CostTable(space, size, num_classes, in_chans)
    table: dict[str, list[float]] = {name: [] for name in names if name != 'aznas'}
    parts: list[dict[str, float]] = []
    for done, arch in enumerate(archs, start=1):
        net = new_network(arch, space, in_chans, num_classes, seed)
        if 'naswot' in table:
            table['naswot'].append(naswot(net, images))
        if 'aznas' in names:
            signs = torch.Generator().manual_seed(seed)
            parts.append({**az_nas_parts(net, images, signs), 'complexity': float(costs.of(arch).macs)})
        if 'synflow' in table:  # last, since it changes the weights
            table['synflow'].append(synflow(net, (in_chans, *size)))
        progress(done)
    return table | ({'aznas': az_nas_ranks(parts)} if 'aznas' in names else {})


def extend_proxies(
    file: str | Path, truth: Truth, seeds: int, images: int = 64, progress: Callable[[str], None] = lambda line: None
) -> None:
    """Scores all paths of a truth with several initialisations; one line per seed, and what is there stays.

    Args:
        file: Table of the scores, appended to.
        truth: Its paths are scored, its training images are the input.
        seeds: Number of initialisations.
        images: Images of the batch.
        progress: Called with a line of text per seed.
    """
    study = truth.study
    batch = study.task.normalise(study.task.compose('train').images[:images])
    conditions = {key: truth.header[key] for key in ('space', 'task', 'data')}
    done = {row['seed'] for row in read_lines(file) if all(row[key] == conditions[key] for key in conditions)}
    archs = [row.arch for row in truth.rows]
    names = [study.space.format(arch) for arch in archs]
    for seed in sorted(set(range(seeds)) - done):
        begin = time.process_time()
        found = proxy_scores(study.space, archs, batch, study.task.num_classes, seed)
        seconds = round(time.process_time() - begin, 1)
        scores = {kind: dict(zip(names, (round(v, 6) for v in values), strict=True)) for kind, values in found.items()}
        line = {
            'seed': seed,
            **conditions,
            'images': images,
            'seconds': seconds,
            'torch': torch.__version__.split('+')[0],
        }
        append_lines(file, [line | {'proxies': scores}])
        progress(f'seed {seed}: {len(archs)} paths, {seconds} s')


def proxies_of(rows: Sequence[Mapping[str, Any]], truth: Truth, half: str) -> dict[str, list[np.ndarray]]:
    """The scores of a half's paths by name, one row per seed, from the lines of such a table among others."""
    lines = [row for row in rows if 'proxies' in row and row['space'] == truth.header['space']]
    names = [truth.study.space.format(row.arch) for row in truth.half(half)]
    lines = sorted(lines, key=lambda row: row['seed'])
    return {kind: [np.array([line['proxies'][kind][n] for n in names]) for line in lines] for kind in PROXIES if lines}


# ---- AZ-NAS ----------------------------------------------------------------------------------------------------------


def az_nas_parts(net: PiNASNet, images: Tensor, signs: torch.Generator) -> dict[str, float]:
    """Expressivity, progressivity and trainability of a network from the outputs of its stem and blocks."""
    features = [net.forward_stem(images)]
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            features.append(block(features[-1]))
    entropies = [_spectrum_entropy(x.detach()) for x in features]
    steps = [_alignment(before, after, signs) for before, after in pairwise(features)]
    return {
        'expressivity': sum(entropies),
        'progressivity': min(b - a for a, b in pairwise(entropies)),
        'trainability': float(np.mean(steps)),
    }


def az_nas_ranks(parts: Sequence[Mapping[str, float]]) -> list[float]:
    """Combines the parts of many paths: the sum of the logarithms of their relative ranks, at most 0."""
    ranks = [rankdata([part[name] for part in parts]) / len(parts) for name in parts[0]]
    return [float(value) for value in np.sum(np.log(ranks), axis=0)]


def _locations(x: Tensor) -> Tensor:
    """Shape: (N, C, H, W) -> (N H W, C)"""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _spectrum_entropy(x: Tensor) -> float:
    rows = _locations(x).double()
    values = torch.linalg.eigvalsh(torch.cov(rows.t(), correction=0)).clamp(min=0)
    share = values / values.sum()
    return float(-(share * (share + 1e-8).log()).sum())


def _alignment(before: Tensor, after: Tensor, signs: torch.Generator) -> float:
    """2 - s - 1/s for the largest singular value s between random signs behind a block and their gradient before it.

    Most, 0, for s = 1: the gradient passes unchanged in size. A block that is the identity teaches nothing: -inf.
    """
    out = torch.randint(2, after.shape, generator=signs).to(after) * 2 - 1
    (into,) = torch.autograd.grad(after, before, out, retain_graph=True)
    if out.shape == into.shape and torch.equal(out, into):
        return -math.inf
    if (stride := -(-into.shape[-1] // out.shape[-1])) > 1:
        pad = [-side % stride for side in into.shape[-2:]]
        into = F.pixel_unshuffle(F.pad(into, (0, pad[1], 0, pad[0])), stride)
    rows, columns = _locations(into), _locations(out)
    largest = float(torch.linalg.matrix_norm(rows.t() @ columns / len(columns), 2))
    return 2 - largest - 1 / (largest + 1e-6)


# ---- synflow, NASWOT -------------------------------------------------------------------------------------------------


def synflow(net: nn.Module, shape: tuple[int, int, int]) -> float:
    """log of the sum of |w dR/dw| over convolution and linear weights; the network's parameters become absolute.

    Args:
        net: The network; BN is left out by statistics of 0 and 1.
        shape: Channels, height and width of its input.
    """
    net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
    net.zero_grad()
    net(torch.ones(1, *shape, dtype=torch.double)).sum().backward()
    weights = [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    terms = [(w.detach() * w.grad).abs().sum() for w in weights if w.grad is not None]
    return math.log(float(torch.stack(terms).sum()))


class _Codes(TorchFunctionMode):
    """Records which inputs of every ReLU are positive, whether it is a module or a function."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Tensor | int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.relu:
            on = (args[0].detach() > 0).flatten(1).double()
            self.kernel = self.kernel + on @ on.t() + (1 - on) @ (1 - on).t()
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def naswot(net: nn.Module, images: Tensor) -> float:
    """log |det K| of the kernel of the ReLUs' codes on a batch of images."""
    codes = _Codes()
    with codes:
        net(images)
    assert isinstance(codes.kernel, Tensor), 'the network has no ReLU'
    return float(torch.linalg.slogdet(codes.kernel).logabsdet)
