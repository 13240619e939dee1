# Unsupervised Pi-NAS supernet of the NAS-Bench-Macro space on CIFAR-10. The schedule is ours and was not run.
_base_ = '../quickstart/pinas-nano-supernet_b128-coslr_fmnist.py'

model = dict(space='nas_bench_macro')
train_dataloader = dict(
    num_workers=4,
    worker_init_fn=dict(type='pinas_zoo.end_with_parent'),
    dataset=dict(
        dataset=dict(
            type='pinas_zoo.FourViews',
            size=32,
            source=dict(kind='cifar10', limit=45000),
            recipe=dict(hue=0.1, blur_p=0.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        ),
    ),
)
train_cfg = dict(max_iters=35000)
param_scheduler = dict(T_max=35000)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(interval=1000))
