# The paper's search: 80 random paths, then the partition tree, 1,000 evaluations.
# BN re-estimation: 49 batches of 128 training images; scores on 50,000 held-out training images
# (the release scores on a list under the ImageNet validation folder).
space = 'pinas'
objective = 'loss'  # 'top1' as released; the loss ranks better, see docs/ranking.md
num_classes = 1000
searcher = dict(name='tree', initial=80, folds=5)  # with the quality gate, as released
budget = 1000
paths_per_pass = 80  # of the random ones; they share prefixes, one pass over the images for all
calibration = dict(
    view=dict(source=dict(kind='folder', root='data/imagenet/train', part='train', holdout=50000, seed=0), size=224),
    batch_size=128,
    batches=49,
    num_workers=8,
)
evaluation = dict(
    view=dict(source=dict(kind='folder', root='data/imagenet/train', part='holdout', holdout=50000, seed=0), size=224),
    batch_size=256,
    num_workers=8,
)
