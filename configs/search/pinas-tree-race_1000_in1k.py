# The paper's search by racing: 8 instead of 49 calibration batches, bad paths leave after 3,000 of the 50,000 images
# (docs/benchmark.md). Not run here: no ImageNet.
_base_ = './pinas-tree_1000_in1k.py'

paths_per_pass = None  # a group is a pass
calibration = dict(batches=8)
race = dict(images=(3000, 12000, 50000), z=2.0, keep=0.5, group=80, cache_gib=20.0)
