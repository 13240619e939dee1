# Stand-alone training of one network of the paper's space for 10 epochs, as the ImageNet shortlist runs it.
_base_ = '../imagenet/pinas-a_8xb32-coslr-270e_in1k.py'

held = dict(kind='folder', root='data/imagenet/train', holdout=50000, seed=0)
model = dict(model=dict(_delete_=True, model_name='pinas'), mixup=0.0)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(dataset=dict(source=dict(_delete_=True, part='train', **held), augment=None)),
)
# The images on which the search scores paths: the choice is biased like the search, the report is not.
val_dataloader = dict(dataset=dict(source=dict(_delete_=True, part='holdout', **held)))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=9, by_epoch=True, begin=1, end=10, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=1024)
