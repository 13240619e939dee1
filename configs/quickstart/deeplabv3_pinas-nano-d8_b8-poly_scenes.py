# DeepLabV3 on composed scenes in ADE20K's layout, 128 px, sized for two CPU cores.
_base_ = ['mmseg::_base_/models/deeplabv3_r50-d8.py', '../_base_/runtime.py']

default_scope = 'mmseg'
classes = 'from data'  # the names that the scenes say; see docs/own_data.md
norm_cfg = dict(type='SyncBN', requires_grad=True)
root = 'work_dirs/quickstart/scenes/ade20k/'
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        space='pinas_nano',
        arch='30-32-20-03',
        output_stride=8,
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(in_channels=384, channels=64, dilations=(1, 2, 4, 6), num_classes='from data'),
    auxiliary_head=dict(in_channels=256, channels=32, num_classes='from data'),
    test_cfg=dict(mode='whole'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=root,
    metainfo=dict(classes=classes),
    reduce_zero_label=True,
    img_suffix='.jpg',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
        test_mode=True,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=False, max_iters=160, val_interval=160)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01, foreach=True))
param_scheduler = dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=0, end=160)
model_wrapper_cfg = dict(_delete_=True, type='MMDistributedDataParallel', find_unused_parameters=True)
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=50),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
auto_scale_lr = dict(base_batch_size=8)
