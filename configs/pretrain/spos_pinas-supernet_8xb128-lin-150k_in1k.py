# SPOS on the paper's space: one uniform path per step, labels; 8 GPUs x 128 images, 150,000 steps, linear to 0.
# Unlike the authors' release: our uniform draw is over paths rather than over bins of FLOPs first, BN is affine, the
# images are random resized crops, and 50,000 training images are held out for ranking.
_base_ = '../_base_/imagenet_labelled.py'

model = dict(
    type='pinas_zoo.SupernetPretraining',
    space='pinas',
    method=dict(type='pinas_zoo.SPOS', num_classes=1000, label_smoothing=0.1),
)
train_dataloader = dict(batch_size=128)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=150000)
optim_wrapper = dict(
    type='pinas_zoo.AmpOptimWrapper',
    loss_scale='dynamic',
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.5, momentum=0.9, weight_decay=4e-5, fused=True),
)
param_scheduler = dict(type='LinearLR', start_factor=1.0, end_factor=0.0, begin=0, end=150000, by_epoch=False)
auto_scale_lr = dict(base_batch_size=1024)
