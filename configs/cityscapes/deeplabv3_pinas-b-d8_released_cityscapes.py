# The released DeepLabV3 (paper: 80.70 % mIoU): its network and its multi-scale test.
# Its training recipe was never released: what stands here of training is mmseg's. Weights:
# tools/download.py pinas_b_deeplabv3_cityscapes, or tools/convert_checkpoint.py PiNAS_trans_citys.pth.tar FILE.pth
_base_ = './deeplabv3_pinas-b-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    type='pinas_zoo.ReleasedEncoderDecoder',
    test_cfg=dict(
        _delete_=True,
        mode='multi-scale',
        base_size=2048,
        crop_size=768,
        scales=(0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25),
        flip=True,
    ),
)
# The image keeps its own size, at which it is scored; the model resizes.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
