# Mask R-CNN on scenes made of the job's own images, 96 px, sized for one CPU core.
_base_ = ['../_base_/models/mask-rcnn_pinas_scenes.py', '../_base_/scenes_detection.py']

width = 48
model = dict(
    # The statistics that the backbone was trained with, those of the pairs.
    data_preprocessor=dict(mean=[71.4] * 3, std=[84.15] * 3, pad_size_divisor=16),
    backbone=dict(space='pinas_patch', arch='44-44', out_indices=(0, 1)),  # strides 4 and 8
    neck=dict(in_channels=[32, 64], out_channels=width, num_outs=3),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[5], strides=[4, 8, 16]),
    ),
    roi_head=dict(
        # One sample per bin: the gradient of large boxes was a quarter of a step.
        bbox_roi_extractor=dict(
            out_channels=width, featmap_strides=[4, 8], finest_scale=28, roi_layer=dict(sampling_ratio=1)
        ),
        bbox_head=dict(in_channels=width),
        # Masks of 14 px, half of the usual: an item is 5 to 15 cells of the finest features.
        mask_roi_extractor=dict(
            out_channels=width,
            featmap_strides=[4, 8],
            finest_scale=28,
            roi_layer=dict(output_size=7, sampling_ratio=1),
        ),
        mask_head=dict(num_convs=1, roi_feat_size=7, in_channels=width, conv_out_channels=width),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=64),
        # Half of the regions are items: in a short training their classes take longest.
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5), mask_size=14),
    ),
    test_cfg=dict(rpn=dict(max_per_img=64), rcnn=dict(max_per_img=30)),
)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (96, 96)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
max_iters = 550
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', T_max=max_iters - 40, by_epoch=False, begin=40, end=max_iters),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=200))
