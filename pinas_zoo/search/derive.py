"""From a supernet to a file that contains one backbone: weights, architecture, space, origin."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import update_bn

import pinas_zoo
from pinas_zoo.files import file_sha256
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.supernet import Factors, SuperNet
from pinas_zoo.weights.load import save_weights

__all__ = ['backbone_metadata', 'derive', 'save_backbone']

WEIGHTS_LICENCE = 'Apache-2.0'


def backbone_metadata(net: PiNASNet, source: str | Path | None = None, **extra: Any) -> dict[str, Any]:
    """The metadata of a network's weight file.

    Args:
        net: The network.
        source: File that the weights come from; its name and SHA-256 are recorded.
        **extra: Further entries.
    """
    return {
        'kind': 'backbone' if net.num_classes == 0 else 'classifier',
        'arch': net.space.format(net.arch),
        'space': json.dumps(net.space.to_dict()),
        'num_classes': net.num_classes,
        'source': None if source is None else Path(source).name,
        'source_sha256': None if source is None else file_sha256(source),
        'licence': WEIGHTS_LICENCE,
        'version': pinas_zoo.__version__,
        **extra,
    }


def save_backbone(path: str | Path, net: PiNASNet, source: str | Path | None = None, **extra: Any) -> None:
    """Writes a network as `.safetensors` with its metadata, atomically. Arguments as for `backbone_metadata`."""
    save_weights(path, net.state_dict(), backbone_metadata(net, source, **extra))


def derive(
    supernet: SuperNet,
    arch: str | Sequence[int | Sequence[int]],
    calibration: Iterable[Tensor] | None = None,
    factors: Factors | None = None,
) -> PiNASNet:
    """Extracts an architecture with its shared weights.

    Args:
        supernet: The trained supernet.
        arch: The architecture.
        calibration: Image batches on which its BN statistics are re-estimated; None keeps the supernet's, which are a
            mixture over paths.
        factors: By position the factors of the candidates that a mixed path keeps, as for `SuperNet.path`.

    Returns:
        The network without classifier, in eval mode.

    Raises:
        ValueError: The architecture is malformed, or the factors do not fit it.
    """
    net = supernet.extract(arch, factors)
    if calibration is not None:
        update_bn(calibration, net.train())
    return net.eval()
