# Mask R-CNN in the paper's form on detectron2's 3x schedule (the paper has 1x only). Not trained here.
_base_ = './mask-rcnn_pinas-b_fpn_1x_coco.py'

max_iter = 270000  # mmdet's variable, for the record only
train_cfg = dict(max_iters=270000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=270000, by_epoch=False, milestones=[210000, 250000], gamma=0.1),
]
