# The search that found pinas_nano_a, without limits.
_base_ = '../quickstart/pinas-nano-tree_128_fmnist.py'

calibration = dict(view=dict(source=dict(limit=50000)))
evaluation = dict(view=dict(source=dict(limit=2000)))
