"""COCO, ADE20K and Cityscapes as folders that mmdet and mmseg expect: checked, linked, reduced to subsets.

`layout` defines what a tree is and finds what is wrong with one, `coco` and `label_maps` know their formats,
`train_ids` makes Cityscapes' maps, `links` links data from elsewhere, `mini` makes a subset that keeps every class.
"""

from pinas_zoo.data.trees.coco import COCO, CocoTree
from pinas_zoo.data.trees.label_maps import ADE20K, CITYSCAPES, LabelMapTree
from pinas_zoo.data.trees.layout import MINI_FILE, SPLITS, Part, Problem, Progress, Tree, TreeError
from pinas_zoo.data.trees.links import link_tree
from pinas_zoo.data.trees.listing import Listing, shorten
from pinas_zoo.data.trees.mini import choose_covering, make_mini
from pinas_zoo.data.trees.train_ids import TRAIN_IDS, make_train_ids

#: By the name that tools/prepare_data.py takes.
TREES = {tree.name: tree for tree in (COCO, ADE20K, CITYSCAPES)}

__all__ = [
    'ADE20K',
    'CITYSCAPES',
    'COCO',
    'MINI_FILE',
    'SPLITS',
    'TRAIN_IDS',
    'TREES',
    'CocoTree',
    'LabelMapTree',
    'Listing',
    'Part',
    'Problem',
    'Progress',
    'Tree',
    'TreeError',
    'choose_covering',
    'link_tree',
    'make_mini',
    'make_train_ids',
    'shorten',
]
