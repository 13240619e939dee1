# Baseline: UPerNet on mmseg's ResNet-50 with its public ImageNet weights, on the same schedule.
_base_ = 'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py'

auto_scale_lr = dict(enable=False, base_batch_size=8)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
