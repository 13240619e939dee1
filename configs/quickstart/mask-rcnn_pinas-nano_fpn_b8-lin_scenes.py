# Mask R-CNN on composed scenes, 128 px, sized for two CPU cores.
_base_ = ['../_base_/models/mask-rcnn_pinas_scenes.py', '../_base_/scenes_detection.py']

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(space='pinas_nano', arch='30-32-20-03', out_indices=(1, 2, 3)),  # strides 4, 8, 16
    neck=dict(in_channels=[128, 256, 384], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=[4, 8, 16], finest_scale=28),
        bbox_head=dict(in_channels=64),
        mask_roi_extractor=dict(out_channels=64, featmap_strides=[4, 8, 16], finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=400, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=100), rcnn=dict(max_per_img=50)),
)
train_cfg = dict(by_epoch=False, max_iters=160, val_interval=160)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', T_max=140, by_epoch=False, begin=20, end=160),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=50))
