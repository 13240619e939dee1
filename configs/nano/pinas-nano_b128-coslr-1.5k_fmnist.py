# Retraining of pinas_nano_a and pinas_nano_b: all training images, three epochs.
_base_ = '../quickstart/pinas-nano_b128-coslr_fmnist.py'

train_dataloader = dict(dataset=dict(dataset=dict(source=dict(limit=60000))))
train_cfg = dict(max_iters=1500, val_interval=1500)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=1400, by_epoch=False, begin=100, end=1500),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='pinas_zoo.ExponentialMovingAverage', momentum=0.02, update_buffers=True),
    dict(type='pinas_zoo.NonFiniteGuardHook'),
    dict(type='pinas_zoo.PathLogHook'),
]
