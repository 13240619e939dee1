# The search of ../quickstart on all unseen training images: bad paths leave the race after 1,500 of the 10,000.
_base_ = '../quickstart/pinas-nano-tree_128_fmnist.py'

calibration = dict(view=dict(source=dict(limit=50000)), batches=4)
evaluation = dict(view=dict(source=dict(limit=10000)))
race = dict(images=(1500, 4000, 10000), z=2.0, keep=0.5, group=48, cache_gib=1.0)
