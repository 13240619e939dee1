# Linear stage of the NAS-Bench-Macro supernet. The schedule is ours and was not run.
_base_ = '../_base_/small_labelled.py'

model = dict(
    type='pinas_zoo.LinearStage',
    space='nas_bench_macro',
    num_classes='from data',
    supernet='work_dirs/nas-bench-macro-supernet_b128-coslr_cifar10',  # a folder: its last checkpoint
    channels_last=True,
)
train_dataloader = dict(
    batch_size=256,
    dataset=dict(dataset=dict(source=dict(kind='cifar10', split='train', limit=45000), size=32, train=True, shift=4)),
)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=3500)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=0.0))
param_scheduler = dict(type='MultiStepLR', milestones=[2100, 2800], gamma=0.1, by_epoch=False)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(interval=1000))
auto_scale_lr = dict(base_batch_size=256)
