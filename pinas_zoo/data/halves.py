"""Two disjoint parts of a labelled source in one sample: one for the weights, one for the architecture."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from pinas_zoo.data.supervised import SupervisedView

__all__ = ['HalvedView']


class HalvedView(Dataset[dict[str, Any]]):
    """A training sample together with one from the part that is held out from the weights.

    Args:
        source: Spec for `open_source`, without `part`.
        share: Share of the source that is held out, in 0..1.
        split_seed: Seed of the split.
        **view: Settings of `SupervisedView`, the same for both parts.

    Returns:
        Per index the sample of `SupervisedView`, and another one under `held_out`.

    Raises:
        ValueError: The share is not between 0 and 1, or a part is empty.
    """

    def __init__(self, source: Mapping[str, Any], share: float = 0.5, split_seed: int = 0, **view: Any) -> None:
        if not 0 < share < 1:
            raise ValueError(f'share must be between 0 and 1, got {share}')
        # `limit` applies to the whole, so it is divided between the parts.
        split, limit = dict(source, seed=split_seed, holdout=share), source.get('limit')
        held = None if limit is None else int(share * limit)
        limits = (None, None) if limit is None else (limit - held, held)
        self.parts = [
            SupervisedView(dict(split, part=part, limit=count), **view)
            for part, count in zip(('train', 'holdout'), limits, strict=True)
        ]

    @property
    def metainfo(self) -> dict[str, Any]:
        """The class names, which are stored in checkpoints."""
        return self.parts[0].metainfo

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        weights, arch = self.parts
        return {**weights[index], 'held_out': arch[index % len(arch)]}
