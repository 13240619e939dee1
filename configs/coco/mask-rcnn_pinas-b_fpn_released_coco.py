# The released Mask R-CNN (paper: 44.07 box AP, 39.50 mask AP): its network, its recipe, its test size. Weights:
# python tools/download.py pinas_b_mask-rcnn_coco, or tools/convert_checkpoint.py PiNAS_trans_COCO.pth FILE.pth
_base_ = './mask-rcnn_pinas-b_fpn_1x_coco.py'

model = dict(
    # RGB, as the backbone was trained; anchors, box coding and class order are mmdet's, equal to detectron2's.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
