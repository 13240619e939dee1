# Written by tools/publish_zoo.py. Trained with
# mask-rcnn_pinas-nano_fpn_b8-lin-480_scenes.py
auto_scale_lr = dict(base_batch_size=8)
classes = (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
)
custom_hooks = [
    dict(type='pinas_zoo.NonFiniteGuardHook'),
    dict(type='pinas_zoo.PathLogHook'),
]
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'pinas_zoo.mm.checkpoint_loader',
    ],
)
dataset = dict(
    data_root='work_dirs/quickstart/scenes/coco/',
    metainfo=dict(
        classes=(
            'T-shirt/top',
            'Trouser',
            'Pullover',
            'Dress',
            'Coat',
            'Sandal',
            'Shirt',
            'Sneaker',
            'Bag',
            'Ankle boot',
        )
    ),
    type='CocoDataset',
)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=50, max_keep_ckpts=2, type='pinas_zoo.ExactCheckpointHook'),
    logger=dict(interval=10, log_metric_by_epoch=False, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='DetVisualizationHook'),
)
default_scope = 'mmdet'
env_cfg = dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl'), mp_cfg=dict(mp_start_method='fork'))
log_level = 'INFO'
log_processor = dict(by_epoch=False, type='LogProcessor')
model = dict(
    _scope_='mmdet',
    backbone=dict(
        arch='30-02-00-10',
        init_cfg=dict(checkpoint='work_dirs/nano/retrain/iter_1500.pth', prefix='net.', type='Pretrained'),
        out_indices=(
            1,
            2,
            3,
        ),
        space='pinas_nano',
        type='pinas_zoo.PiNASBackbone',
    ),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_mask=True,
        pad_size_divisor=32,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='DetDataPreprocessor',
    ),
    neck=dict(
        in_channels=[
            128,
            256,
            384,
        ],
        num_outs=4,
        out_channels=64,
        type='FPN',
    ),
    roi_head=dict(
        bbox_head=dict(
            bbox_coder=dict(
                target_means=[
                    0.0,
                    0.0,
                    0.0,
                    0.0,
                ],
                target_stds=[
                    0.1,
                    0.1,
                    0.2,
                    0.2,
                ],
                type='DeltaXYWHBBoxCoder',
            ),
            fc_out_channels=256,
            in_channels=64,
            loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
            loss_cls=dict(loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
            num_classes=10,
            reg_class_agnostic=False,
            roi_feat_size=7,
            type='Shared2FCBBoxHead',
        ),
        bbox_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
            ],
            finest_scale=28,
            out_channels=64,
            roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor',
        ),
        mask_head=dict(
            conv_out_channels=64,
            in_channels=64,
            loss_mask=dict(loss_weight=1.0, type='CrossEntropyLoss', use_mask=True),
            num_classes=10,
            num_convs=2,
            type='FCNMaskHead',
        ),
        mask_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
            ],
            finest_scale=28,
            out_channels=64,
            roi_layer=dict(output_size=14, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor',
        ),
        type='StandardRoIHead',
    ),
    rpn_head=dict(
        anchor_generator=dict(
            ratios=[
                0.5,
                1.0,
                2.0,
            ],
            scales=[
                4,
            ],
            strides=[
                4,
                8,
                16,
                32,
            ],
            type='AnchorGenerator',
        ),
        bbox_coder=dict(
            target_means=[
                0.0,
                0.0,
                0.0,
                0.0,
            ],
            target_stds=[
                1.0,
                1.0,
                1.0,
                1.0,
            ],
            type='DeltaXYWHBBoxCoder',
        ),
        feat_channels=64,
        in_channels=64,
        loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
        loss_cls=dict(loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=True),
        type='RPNHead',
    ),
    test_cfg=dict(
        rcnn=dict(mask_thr_binary=0.5, max_per_img=50, nms=dict(iou_threshold=0.5, type='nms'), score_thr=0.05),
        rpn=dict(max_per_img=100, min_bbox_size=0, nms=dict(iou_threshold=0.7, type='nms'), nms_pre=200),
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.5,
                neg_iou_thr=0.5,
                pos_iou_thr=0.5,
                type='MaxIoUAssigner',
            ),
            debug=False,
            mask_size=28,
            pos_weight=-1,
            sampler=dict(add_gt_as_proposals=True, neg_pos_ub=-1, num=64, pos_fraction=0.25, type='RandomSampler'),
        ),
        rpn=dict(
            allowed_border=-1,
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.3,
                neg_iou_thr=0.3,
                pos_iou_thr=0.7,
                type='MaxIoUAssigner',
            ),
            debug=False,
            pos_weight=-1,
            sampler=dict(add_gt_as_proposals=False, neg_pos_ub=-1, num=64, pos_fraction=0.5, type='RandomSampler'),
        ),
        rpn_proposal=dict(max_per_img=200, min_bbox_size=0, nms=dict(iou_threshold=0.7, type='nms'), nms_pre=400),
    ),
    type='MaskRCNN',
)
model_wrapper_cfg = dict(find_unused_parameters=True, type='MMDistributedDataParallel')
optim_wrapper = dict(
    clip_grad=dict(max_norm=10.0),
    optimizer=dict(foreach=True, lr=0.001, type='AdamW', weight_decay=0.01),
    type='OptimWrapper',
)
param_scheduler = [
    dict(begin=0, by_epoch=False, end=20, start_factor=0.05, type='LinearLR'),
    dict(T_max=460, begin=20, by_epoch=False, end=480, type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
root = 'work_dirs/nano/scenes/coco/'
test_cfg = dict()
test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        data_root='work_dirs/nano/scenes/coco/',
        metainfo=dict(
            classes=(
                'T-shirt/top',
                'Trouser',
                'Pullover',
                'Dress',
                'Coat',
                'Sandal',
                'Shirt',
                'Sneaker',
                'Bag',
                'Ankle boot',
            )
        ),
        pipeline=[
            dict(backend_args=None, type='LoadImageFromFile'),
            dict(
                keep_ratio=True,
                scale=(
                    128,
                    128,
                ),
                type='Resize',
            ),
            dict(poly2mask=True, type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs',
            ),
        ],
        test_mode=True,
        type='CocoDataset',
    ),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
test_evaluator = dict(
    ann_file='work_dirs/nano/scenes/coco/annotations/instances_val2017.json',
    metric=[
        'bbox',
        'segm',
    ],
    type='CocoMetric',
)
test_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(
        keep_ratio=True,
        scale=(
            128,
            128,
        ),
        type='Resize',
    ),
    dict(poly2mask=True, type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
        type='PackDetInputs',
    ),
]
train_cfg = dict(max_iters=480, type='pinas_zoo.ExactIterLoop', val_interval=480)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        dataset=dict(
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            data_root='work_dirs/nano/scenes/coco/',
            filter_cfg=dict(filter_empty_gt=True),
            metainfo=dict(
                classes=(
                    'T-shirt/top',
                    'Trouser',
                    'Pullover',
                    'Dress',
                    'Coat',
                    'Sandal',
                    'Shirt',
                    'Sneaker',
                    'Bag',
                    'Ankle boot',
                )
            ),
            pipeline=[
                dict(backend_args=None, type='LoadImageFromFile'),
                dict(poly2mask=True, type='LoadAnnotations', with_bbox=True, with_mask=True),
                dict(prob=0.5, type='RandomFlip'),
                dict(type='PackDetInputs'),
            ],
            type='CocoDataset',
        ),
        seed=0,
        type='pinas_zoo.SeededDataset',
    ),
    num_workers=0,
    sampler=dict(seed=0, shuffle=True, type='pinas_zoo.StatelessSampler'),
)
train_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(poly2mask=True, type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(prob=0.5, type='RandomFlip'),
    dict(type='PackDetInputs'),
]
val_cfg = dict()
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        data_root='work_dirs/nano/scenes/coco/',
        metainfo=dict(
            classes=(
                'T-shirt/top',
                'Trouser',
                'Pullover',
                'Dress',
                'Coat',
                'Sandal',
                'Shirt',
                'Sneaker',
                'Bag',
                'Ankle boot',
            )
        ),
        pipeline=[
            dict(backend_args=None, type='LoadImageFromFile'),
            dict(
                keep_ratio=True,
                scale=(
                    128,
                    128,
                ),
                type='Resize',
            ),
            dict(poly2mask=True, type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs',
            ),
        ],
        test_mode=True,
        type='CocoDataset',
    ),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
val_evaluator = dict(
    ann_file='work_dirs/nano/scenes/coco/annotations/instances_val2017.json',
    metric=[
        'bbox',
        'segm',
    ],
    type='CocoMetric',
)
visualizer = dict(
    type='DetLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend'),
    ],
)
