# Unsupervised Pi-NAS supernet of the patch space on pairs of items, sized for one CPU core: the ranking study's recipe.
_base_ = '../_base_/small_pinas.py'

size = (20, 40)
# Disjoint items: the first 50,000 train, of the others one half chooses architectures and one evaluates features.
pairs = dict(kind='pairs', split='train', items_limit=50000, pairs=50000)
model = dict(space='pinas_patch', method=dict(queue_length=512))
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        dataset=dict(
            size=size,
            source=pairs,
            recipe=dict(
                scale=(0.8, 1.0),
                ratio=(1.5, 8 / 3),  # the usual 3/4 to 4/3, for canvases that are twice as wide as high
                saturation=0.0,
                hue=0.0,
                grey_p=0.0,
                blur_p=0.0,
                mean=(0.28,),
                std=(0.33,),
            ),
        ),
    ),
)
max_iters = 2000
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=max_iters)
optim_wrapper = dict(
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', T_max=max_iters, eta_min=0, by_epoch=False),
]
custom_hooks = [
    dict(type='pinas_zoo.NonFiniteGuardHook'),
    dict(type='pinas_zoo.PathLogHook'),
    dict(
        type='pinas_zoo.KNNHook',
        interval=200,
        bank=dict(source=dict(pairs, pairs=3000, pair_seed=1), size=size),
        queries=dict(source=dict(pairs, items_start=55000, items_limit=5000, pairs=1000), size=size),
    ),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
auto_scale_lr = dict(base_batch_size=32)
