# SPOS on the NAS-Bench-Macro space. The schedule is ours and was not run.
_base_ = '../pretrain/spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(space='nas_bench_macro')
train_dataloader = dict(
    dataset=dict(dataset=dict(source=dict(kind='cifar10', limit=45000), size=32, shift=4)),
)
train_cfg = dict(max_iters=35000)
param_scheduler = dict(end=35000)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(interval=1000))
