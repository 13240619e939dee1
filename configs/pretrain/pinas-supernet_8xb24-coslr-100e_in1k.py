# The paper's unsupervised stage: 8 GPUs x 24 images, 100 epochs of ImageNet-1k, half precision.
# bfloat16 if the card supports it, else float16 with a scaler as released (optim_wrapper.dtype=float16 selects that).
_base_ = '../_base_/imagenet.py'

model = dict(
    type='pinas_zoo.SupernetPretraining',
    space='pinas',
    channels_last=True,  # 52 ms per step instead of 60 on an H200 (docs/gpu.md)
    method=dict(
        type='pinas_zoo.PiNAS', dim=128, queue_length=49152, momentum=0.999, temperature=0.2, released_init=True
    ),
)
train_dataloader = dict(
    batch_size=24,
    dataset=dict(
        dataset=dict(type='pinas_zoo.FourViews', source=dict(kind='folder', root='data/imagenet/train'), size=224)
    ),
    collate_fn=dict(type='pinas_zoo.collate_views'),
)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_epochs=100)
optim_wrapper = dict(
    type='pinas_zoo.AmpOptimWrapper',
    loss_scale='dynamic',
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4, fused=True),
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=100, eta_min=0, by_epoch=True, convert_to_iter_based=True)
auto_scale_lr = dict(base_batch_size=192)
