# Mask R-CNN on scenes of the job's own pixels, 96 px, sized for one CPU core.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../_base_/runtime.py']

default_scope = 'mmdet'
classes = 'from data'  # the names that the scenes say; see docs/own_data.md
root = 'work_dirs/quickstart/scenes/coco/'
width = 48
model = dict(
    # The statistics that the backbone was trained with, those of the pairs.
    data_preprocessor=dict(mean=[71.4] * 3, std=[84.15] * 3, pad_size_divisor=16),
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        space='pinas_patch',
        arch='44-44',
        out_indices=(0, 1),  # strides 4 and 8
    ),
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
        bbox_head=dict(in_channels=width, fc_out_channels=256, num_classes='from data'),
        mask_roi_extractor=dict(
            out_channels=width, featmap_strides=[4, 8], finest_scale=28, roi_layer=dict(sampling_ratio=1)
        ),
        mask_head=dict(num_convs=1, in_channels=width, conv_out_channels=width, num_classes='from data'),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=64),
        # Half of the regions are items: in a short training their classes take longest.
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=64), rcnn=dict(max_per_img=30)),
)
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),  # sets the scale factor that the mask head asks for
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(type='CocoDataset', data_root=root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=train_pipeline,
        filter_cfg=dict(filter_empty_gt=True),
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        pipeline=test_pipeline,
        test_mode=True,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=root + 'annotations/instances_val2017.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
max_iters = 500
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01, foreach=True),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', T_max=max_iters - 40, by_epoch=False, begin=40, end=max_iters),
]
model_wrapper_cfg = dict(_delete_=True, type='MMDistributedDataParallel', find_unused_parameters=True)
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=200),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
auto_scale_lr = dict(base_batch_size=8)
