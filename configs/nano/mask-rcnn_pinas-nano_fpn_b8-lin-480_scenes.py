# The detector under checkpoints/: the quickstart's, on pinas_nano_a, three times as long on twice the scenes.
_base_ = '../quickstart/mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py'

root = 'work_dirs/nano/scenes/coco/'
model = dict(
    backbone=dict(arch='30-02-00-10', init_cfg=dict(type='Pretrained', checkpoint='pinas://pinas_nano_a.fmnist'))
)
train_dataloader = dict(dataset=dict(data_root=root))
val_dataloader = dict(dataset=dict(data_root=root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=480, val_interval=480)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', T_max=460, by_epoch=False, begin=20, end=480),
]
