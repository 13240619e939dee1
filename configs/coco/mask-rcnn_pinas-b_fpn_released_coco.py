# The released Mask R-CNN (paper: 44.07 box AP, 39.50 mask AP): its network, its recipe, its test size. Weights:
# python tools/download.py pinas_b_mask-rcnn_coco, or tools/convert_checkpoint.py PiNAS_trans_COCO.pth FILE.pth
_base_ = './mask-rcnn_pinas-b_fpn_1x_coco.py'

# Anchors, box coding, class order and RGB input are those of mmdet's base, equal to detectron2's.
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
