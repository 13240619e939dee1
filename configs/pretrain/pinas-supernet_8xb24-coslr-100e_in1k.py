# The paper's unsupervised stage: 8 GPUs x 24 images, 100 epochs of ImageNet-1k, half precision.
# bfloat16 in place of the release's float16: it needs no loss scaler. On cards without it (before Ampere):
#   --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.loss_scale=dynamic
_base_ = '../_base_/runtime.py'

model = dict(
    type='pinas_zoo.SupernetPretraining',
    space='pinas',
    method=dict(type='pinas_zoo.PiNAS', dim=128, queue_length=49152, momentum=0.999, temperature=0.2),
)
train_dataloader = dict(
    batch_size=24,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='pinas_zoo.StatelessSampler', shuffle=True),
    dataset=dict(type='pinas_zoo.FourViews', source=dict(kind='folder', root='data/imagenet/train'), size=224),
    collate_fn=dict(type='pinas_zoo.collate_views'),
)
train_cfg = dict(by_epoch=True, max_epochs=100)
optim_wrapper = dict(
    type='pinas_zoo.BFloat16OptimWrapper',
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4, fused=True),
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=100, eta_min=0, by_epoch=True, convert_to_iter_based=True)
auto_scale_lr = dict(base_batch_size=192)
