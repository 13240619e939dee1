# Unsupervised Pi-NAS supernet of the NAS-Bench-Macro space on CIFAR-10. The schedule is ours and was not run.
_base_ = '../_base_/small_pinas.py'

model = dict(space='nas_bench_macro', method=dict(queue_length=4096))
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    worker_init_fn=dict(type='pinas_zoo.end_with_parent'),
    dataset=dict(
        dataset=dict(
            type='pinas_zoo.FourViews',
            size=32,
            source=dict(kind='cifar10', split='train', limit=45000),
            recipe=dict(hue=0.1, blur_p=0.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        ),
    ),
)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=35000)
optim_wrapper = dict(
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-4, fused=True),
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=35000, eta_min=0, by_epoch=False)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(interval=1000))
auto_scale_lr = dict(base_batch_size=128)
