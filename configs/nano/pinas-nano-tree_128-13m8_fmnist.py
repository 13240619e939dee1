# The search that found pinas_nano_b: at most 13.85 M MACs with the head, which a fifth of the space satisfies.
_base_ = './pinas-nano-tree_128_fmnist.py'

limits = dict(max_macs=13_850_000)
