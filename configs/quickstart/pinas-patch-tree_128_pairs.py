# Search in the patch supernet, ranked by the loss on held-out pairs (see docs/ranking.md for the reason).
space = 'pinas_patch'
objective = 'loss'
num_classes = 'from data'
size = (20, 40)
# A tree for 128 evaluations grows earlier than the paper's for 1,000.
searcher = dict(
    name='tree', initial=48, heights=(56, 72, 96, 120), min_samples=8, estimators=24, depth=2, max_draws=4096
)
budget = 128
channels_last = True
calibration = dict(
    view=dict(source=dict(kind='pairs', split='train', items_limit=50000, pairs=1024), size=size),
    batch_size=64,
    batches=16,
    in_memory=True,
)
# Items of the train split that no earlier stage has seen.
evaluation = dict(
    view=dict(source=dict(kind='pairs', split='train', items_start=50000, items_limit=5000, pairs=4000), size=size),
    batch_size=500,
    in_memory=True,
)
