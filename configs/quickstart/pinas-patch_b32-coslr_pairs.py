# Retraining of the chosen network from scratch on pairs of items: the stand-alone recipe of the ranking study, longer.
_base_ = './pinas-patch-short_b32-coslr_pairs.py'

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, eta_min=0, by_epoch=False),
]
val_dataloader = dict(dataset=dict(source=dict(_delete_=True, kind='pairs', split='test', pairs=5000)))
