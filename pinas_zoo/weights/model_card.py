"""Model cards: what one says, its text, and its metadata in the terms of the Hugging Face Hub."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pinas_zoo.files import file_sha256

__all__ = ['Card', 'card_data', 'model_card']

#: Licences of weights that the hub knows by name; others are 'other' with their text.
HUB_LICENCES = ('apache-2.0', 'mit', 'bsd-3-clause', 'cc-by-4.0', 'cc-by-nc-4.0', 'cc0-1.0')


@dataclass(frozen=True)
class Card:
    """What a model card says in addition to the file.

    Args:
        data: Training data.
        recipe: How it was trained: config, seed, hardware.
        metrics: Metric by name.
        protocol: How the metrics were measured.
        limits: What the weights should not be used for.
        licence: Licence of the weights; None uses what the file says.
    """

    data: str = 'not stated'
    recipe: str = 'not stated'
    metrics: dict[str, float] = field(default_factory=dict)
    protocol: str = 'not stated'
    limits: str = 'not stated'
    licence: str | None = None


def model_card(title: str, usage: str, file: Path, facts: dict[str, Any], card: Card, tags: Sequence[str]) -> str:
    """The text of a model card.

    Args:
        title: First line.
        usage: Python lines that load the weights.
        file: The weight file, whose hash is stated.
        facts: See `describe`.
        card: See `Card`.
        tags: Library first, then the task, as the hub names them.
    """
    arch, space = facts['arch'], json.loads(facts['space'])['name']
    metrics = '\n'.join(f'- {name}: {value}' for name, value in card.metrics.items()) or '- none'
    return f"""---
{card_data(title, facts, card, tags).to_yaml()}
---
# {title}

```python
{usage}
```

| what | |
|---|---|
| architecture | {f'`{arch}`' if arch else 'all'} of space `{space}` |
| classes | {facts['num_classes'] or 'none: a backbone'} |
| training data | {card.data} |
| recipe | {card.recipe} |
| limits | {card.limits} |
| licence of the weights | {facts['licence']} |
| licence of the code | Apache-2.0 |
| made from | {facts['source']}, sha256 `{facts['source_sha256']}` |
| sha256 of {file.name} | `{file_sha256(file)}` |
| written by | pinas_zoo {facts['version']} |

Metrics (protocol: {card.protocol}):

{metrics}
"""


def card_data(title: str, facts: dict[str, Any], card: Card, tags: Sequence[str]) -> ModelCardData:
    """The metadata of a model card, in the hub's terms; arguments as for `model_card`."""
    licence = facts['licence']
    known = licence.lower() in HUB_LICENCES
    dataset = card.data.split(',')[0]
    results = [
        EvalResult(
            task_type=tags[1],
            dataset_type=_slug(dataset),
            dataset_name=dataset,
            metric_type=_slug(name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in card.metrics.items()
    ]
    return ModelCardData(
        library_name=tags[0],
        pipeline_tag=tags[1],
        tags=list(dict.fromkeys([tags[0], 'pinas_zoo', tags[1]])),
        license=licence.lower() if known else 'other',
        license_name=None if known else licence,
        model_name=re.split('[:,]', title)[0],
        eval_results=results or None,
        ignore_metadata_errors=False,
    )


def _slug(text: str) -> str:
    return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')
