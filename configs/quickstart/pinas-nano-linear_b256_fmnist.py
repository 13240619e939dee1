# Linear stage of the nano supernet, on other images than those that score the search.
_base_ = '../_base_/small_labelled.py'

model = dict(
    type='pinas_zoo.LinearStage',
    space='pinas_nano',
    num_classes='from data',
    supernet='work_dirs/quickstart/pretrain',  # a folder: its last checkpoint
    channels_last=True,
)
train_dataloader = dict(
    batch_size=256,
    dataset=dict(dataset=dict(source=dict(kind='fashion-mnist', split='train', limit=20000), size=28)),
)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=200)
# The paper's lr 30 is for its long pre-training. After this short one, of 0.02, 0.1, 0.5 and 2, 0.1 gave the lowest
# loss and 0.5 the highest accuracy.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=0.0))
param_scheduler = dict(type='MultiStepLR', milestones=[120, 160], gamma=0.1, by_epoch=False)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=256)
