# The supernet under checkpoints/: the quickstart's, on 50,000 images for five times as long.
_base_ = '../quickstart/pinas-nano-supernet_b128-coslr_fmnist.py'

train_dataloader = dict(dataset=dict(dataset=dict(source=dict(limit=50000))))
train_cfg = dict(max_iters=1300)
param_scheduler = dict(T_max=1300)
