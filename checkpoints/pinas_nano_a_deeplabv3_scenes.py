# Written by tools/publish_zoo.py. Trained with
# deeplabv3_pinas-nano-d8_b8-poly-1.6k_scenes.py
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
    'wall',
    'floor',
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
data_preprocessor = dict(
    _scope_='mmseg',
    bgr_to_rgb=True,
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    pad_val=0,
    seg_pad_val=255,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    type='SegDataPreProcessor',
)
dataset = dict(
    data_root='work_dirs/quickstart/scenes/ade20k/',
    img_suffix='.jpg',
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
            'wall',
            'floor',
        )
    ),
    reduce_zero_label=True,
    seg_map_suffix='.png',
    type='BaseSegDataset',
)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=50, max_keep_ckpts=2, type='pinas_zoo.ExactCheckpointHook'),
    logger=dict(interval=10, log_metric_by_epoch=False, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='SegVisualizationHook'),
)
default_scope = 'mmseg'
env_cfg = dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl'), mp_cfg=dict(mp_start_method='fork'))
log_level = 'INFO'
log_processor = dict(by_epoch=False, type='LogProcessor')
model = dict(
    _scope_='mmseg',
    auxiliary_head=dict(
        align_corners=False,
        channels=32,
        concat_input=False,
        dropout_ratio=0.1,
        in_channels=256,
        in_index=2,
        loss_decode=dict(loss_weight=0.4, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=12,
        num_convs=1,
        type='FCNHead',
    ),
    backbone=dict(
        arch='30-02-00-10',
        init_cfg=dict(checkpoint='work_dirs/nano/retrain/iter_1500.pth', prefix='net.', type='Pretrained'),
        norm_cfg=dict(requires_grad=True, type='BN'),
        output_stride=8,
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
        pad_val=0,
        seg_pad_val=255,
        size=(
            128,
            128,
        ),
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='SegDataPreProcessor',
    ),
    decode_head=dict(
        align_corners=False,
        channels=64,
        dilations=(
            1,
            2,
            4,
            6,
        ),
        dropout_ratio=0.1,
        in_channels=384,
        in_index=3,
        loss_decode=dict(loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=12,
        type='ASPPHead',
    ),
    pretrained=None,
    test_cfg=dict(mode='whole'),
    train_cfg=dict(),
    type='EncoderDecoder',
)
model_wrapper_cfg = dict(find_unused_parameters=True, type='MMDistributedDataParallel')
norm_cfg = dict(_scope_='mmseg', requires_grad=True, type='BN')
optim_wrapper = dict(optimizer=dict(foreach=True, lr=0.001, type='AdamW', weight_decay=0.01), type='OptimWrapper')
param_scheduler = dict(begin=0, by_epoch=False, end=1600, eta_min=1e-05, power=0.9, type='PolyLR')
randomness = dict(seed=0)
root = 'work_dirs/nano/scenes/ade20k/'
test_cfg = dict()
test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        data_root='work_dirs/nano/scenes/ade20k/',
        img_suffix='.jpg',
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
                'wall',
                'floor',
            )
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(reduce_zero_label=True, type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        test_mode=True,
        type='BaseSegDataset',
    ),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
test_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ],
    type='IoUMetric',
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(reduce_zero_label=True, type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_cfg = dict(max_iters=1600, type='pinas_zoo.ExactIterLoop', val_interval=1600)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        dataset=dict(
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            data_root='work_dirs/nano/scenes/ade20k/',
            img_suffix='.jpg',
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
                    'wall',
                    'floor',
                )
            ),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(reduce_zero_label=True, type='LoadAnnotations'),
                dict(prob=0.5, type='RandomFlip'),
                dict(type='PackSegInputs'),
            ],
            reduce_zero_label=True,
            seg_map_suffix='.png',
            type='BaseSegDataset',
        ),
        seed=0,
        type='pinas_zoo.SeededDataset',
    ),
    num_workers=0,
    sampler=dict(seed=0, shuffle=True, type='pinas_zoo.StatelessSampler'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(reduce_zero_label=True, type='LoadAnnotations'),
    dict(prob=0.5, type='RandomFlip'),
    dict(type='PackSegInputs'),
]
val_cfg = dict()
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        data_root='work_dirs/nano/scenes/ade20k/',
        img_suffix='.jpg',
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
                'wall',
                'floor',
            )
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(reduce_zero_label=True, type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        test_mode=True,
        type='BaseSegDataset',
    ),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
val_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ],
    type='IoUMetric',
)
visualizer = dict(
    type='SegLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend'),
    ],
)
