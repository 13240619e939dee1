# The paper's linear stage: frozen supernet, one random path per step, batch statistics; 8 GPUs x 32 images.
# The release selects paths on images of the ImageNet validation folder; ours holds out 50,000 training images.
_base_ = '../_base_/imagenet_labelled.py'

model = dict(
    type='pinas_zoo.LinearStage',
    space='pinas',
    num_classes=1000,
    supernet='work_dirs/pinas-supernet_8xb24-coslr-100e_in1k',  # a folder: its last checkpoint
)
train_dataloader = dict(batch_size=32)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_epochs=100)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=30.0, momentum=0.9, weight_decay=0.0))
param_scheduler = dict(type='MultiStepLR', milestones=[60, 80], gamma=0.1, by_epoch=True, convert_to_iter_based=True)
auto_scale_lr = dict(base_batch_size=256)
