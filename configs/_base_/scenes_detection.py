# Detection and instance segmentation on composed scenes in COCO's layout: data and evaluation.
_base_ = './scenes.py'

default_scope = 'mmdet'
classes = 'from data'  # the names in the scenes; see docs/own_data.md
root = 'work_dirs/quickstart/scenes/coco/'
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),  # sets the scale factor that the mask head needs
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(type='CocoDataset', data_root=root, metainfo=dict(classes=classes))
train_dataloader = dict(
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
optim_wrapper = dict(clip_grad=dict(max_norm=10.0))
visualizer = dict(type='DetLocalVisualizer')
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
