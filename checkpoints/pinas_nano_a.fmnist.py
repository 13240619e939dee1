# Written by tools/publish_zoo.py. Trained with
# pinas-nano_b128-coslr-1.5k_fmnist.py
auto_scale_lr = dict(base_batch_size=128)
custom_hooks = [
    dict(ema_type='ExponentialMovingAverage', momentum=0.02, type='EMAHook', update_buffers=True),
    dict(type='pinas_zoo.NonFiniteGuardHook'),
    dict(type='pinas_zoo.PathLogHook'),
]
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'pinas_zoo.mm.checkpoint_loader',
    ],
)
data = dict(kind='folder', root='data/imagenet/train')
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=100, type='pinas_zoo.ExactCheckpointHook'),
    logger=dict(interval=20, log_metric_by_epoch=False, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    timer=dict(type='IterTimerHook'),
)
default_scope = 'pinas_zoo'
env_cfg = dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl'), mp_cfg=dict(mp_start_method='fork'))
log_level = 'INFO'
log_processor = dict(by_epoch=False, type='LogProcessor')
model = dict(
    channels_last=True,
    label_smoothing=0.0,
    mixup=0.0,
    model=dict(arch='30-02-00-10', model_name='pinas_nano'),
    num_classes=10,
    type='pinas_zoo.Classifier',
)
model_wrapper_cfg = dict(find_unused_parameters=False, type='MMDistributedDataParallel')
optim_wrapper = dict(optimizer=dict(fused=True, lr=0.003, type='AdamW', weight_decay=0.05))
param_scheduler = [
    dict(begin=0, by_epoch=False, end=100, start_factor=0.01, type='LinearLR'),
    dict(T_max=1400, begin=100, by_epoch=False, end=1500, type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
test_cfg = dict()
test_dataloader = dict(
    batch_size=500,
    collate_fn=dict(type='pinas_zoo.default_collate'),
    dataset=dict(size=28, source=dict(kind='fashion-mnist', split='test'), type='pinas_zoo.SupervisedView'),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
test_evaluator = dict(topk=(1,), type='pinas_zoo.TopAccuracy')
train_cfg = dict(max_iters=1500, type='pinas_zoo.ExactIterLoop', val_interval=1500)
train_dataloader = dict(
    batch_size=128,
    collate_fn=dict(type='pinas_zoo.default_collate'),
    dataset=dict(
        dataset=dict(
            size=28,
            source=dict(kind='fashion-mnist', limit=60000, split='train'),
            train=False,
            type='pinas_zoo.SupervisedView',
        ),
        seed=0,
        type='pinas_zoo.SeededDataset',
    ),
    drop_last=True,
    num_workers=0,
    pin_memory=True,
    sampler=dict(seed=0, shuffle=True, type='pinas_zoo.StatelessSampler'),
)
val = dict(kind='folder', root='data/imagenet/val')
val_cfg = dict()
val_dataloader = dict(
    batch_size=500,
    collate_fn=dict(type='pinas_zoo.default_collate'),
    dataset=dict(size=28, source=dict(kind='fashion-mnist', split='test'), type='pinas_zoo.SupervisedView'),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
val_evaluator = dict(topk=(1,), type='pinas_zoo.TopAccuracy')
visualizer = dict(
    type='Visualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend'),
    ],
)
