# Search that found pinas_nano_a: no limit.
_base_ = '../quickstart/pinas-nano-tree_128_fmnist.py'

calibration = dict(view=dict(source=dict(limit=50000)))
evaluation = dict(view=dict(source=dict(limit=2000)))
