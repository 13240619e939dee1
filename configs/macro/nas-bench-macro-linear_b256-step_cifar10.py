# Linear stage of the NAS-Bench-Macro supernet. The schedule is ours and was not run.
_base_ = '../quickstart/pinas-nano-linear_b256_fmnist.py'

model = dict(space='nas_bench_macro', supernet='work_dirs/nas-bench-macro-supernet_b128-coslr_cifar10')
train_dataloader = dict(
    dataset=dict(dataset=dict(source=dict(kind='cifar10', limit=45000), size=32, train=True, shift=4)),
)
train_cfg = dict(max_iters=3500)
param_scheduler = dict(milestones=[2100, 2800])
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(interval=1000))
