# Search in a NAS-Bench-Macro supernet; the last 5,000 training images score the paths. It was not run.
_base_ = '../quickstart/pinas-nano-tree_128_fmnist.py'

space = 'nas_bench_macro'
budget = 200
calibration = dict(view=dict(source=dict(kind='cifar10', limit=45000), size=32), batches=16)
evaluation = dict(view=dict(source=dict(kind='cifar10', start=45000, limit=5000), size=32))
