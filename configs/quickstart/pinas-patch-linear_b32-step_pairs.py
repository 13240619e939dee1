# Linear stage of the patch supernet; its classes are pairs of the data set's classes.
_base_ = '../_base_/small_labelled.py'

model = dict(
    type='pinas_zoo.LinearStage',
    space='pinas_patch',
    num_classes='from data',
    supernet='work_dirs/quickstart/pretrain',  # a folder: its last checkpoint
    channels_last=True,
)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        dataset=dict(
            source=dict(kind='pairs', split='train', items_limit=50000, pairs=50000), size=(20, 40), shift=2, train=True
        )
    ),
)
max_iters = 1500
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=max_iters)
# The paper's lr 30 is for its long pre-training.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=0.0))
param_scheduler = dict(type='MultiStepLR', milestones=[900, 1200], gamma=0.1, by_epoch=False)
default_hooks = dict(checkpoint=dict(interval=500))
auto_scale_lr = dict(base_batch_size=32)
