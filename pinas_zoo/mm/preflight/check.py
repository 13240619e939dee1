"""What is wrong with a run's data, found before it starts.

mmdet's and mmseg's data: `downstream`; sources of ours: `views`. What a sample shows later is named while it is read.
`preflight=False` in the config, or as an option, leaves the check out. What counts as wrong: docs/own_data.md.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.logging import MMLogger

from pinas_zoo.mm.preflight.bad_input import BadInputError
from pinas_zoo.mm.preflight.findings import Findings
from pinas_zoo.mm.preflight.views import check_views

#: How the notes begin that are warnings.
WARNS = 'preflight: '
_LOADERS = {split: f'{split}_dataloader' for split in ('train', 'val', 'test')}


def check_data(cfg: Config, splits: Sequence[str], notes: list[str]) -> None:
    """Check the data of a run.

    One process a machine looks; all of them stop together.

    Args:
        cfg: With its default scope set.
        splits: Of 'train', 'val', 'test': the loaders that the run uses; of a search its parts.
        notes: Receives what is legal and yet surprising.

    Raises:
        BadInputError: One line per problem.
    """
    if not cfg.get('preflight', True):
        notes.append('preflight=False: the data were not checked')
        return
    findings = Findings()
    if os.environ.get('LOCAL_RANK', '0') == '0':
        if cfg.get('default_scope') in ('mmdet', 'mmseg'):
            from pinas_zoo.mm.preflight.downstream import find_problems  # other trainings do without

            findings = find_problems(cfg, splits)
        else:
            check_views(cfg, tuple(_LOADERS.get(split, split) for split in splits), findings)
    gathered = all_gather_object(findings)
    errors = list(dict.fromkeys(line for found in gathered for line in found.errors))
    notes += dict.fromkeys(f'{WARNS}{line}' for found in gathered for line in found.warnings)
    if errors:
        head = [f'{len(errors)} problems with the data:'] if len(errors) > 1 else []
        raise BadInputError('\n'.join([*head, *errors]))


def tell(notes: Sequence[str], inform: Callable[[str], Any] = print) -> None:
    """The notes of a run, its warnings together at the end.

    Args:
        notes: As `check_data` and others left them.
        inform: Takes what is no warning.
    """
    for note in notes:
        if not note.startswith(WARNS):
            inform(note)
    for note in notes:
        if note.startswith(WARNS):
            MMLogger.get_current_instance().warning(note)
