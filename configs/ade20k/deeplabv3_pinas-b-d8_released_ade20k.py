# The released DeepLabV3 (paper: 81.27 % pixel accuracy, 45.47 % mIoU): its network and its multi-scale test.
# Its training recipe was never released: what stands here of training is mmseg's. Weights:
# tools/download.py pinas_b_deeplabv3_ade20k, or tools/convert_checkpoint.py PiNAS_trans_ade.pth.tar FILE.pth
_base_ = './deeplabv3_pinas-b-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    type='pinas_zoo.ReleasedEncoderDecoder',
    test_cfg=dict(
        _delete_=True,
        mode='multi-scale',
        base_size=520,
        crop_size=480,
        scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip=True,
    ),
)
# The image keeps its own size, at which it is scored; the model resizes.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
