# DeepLabV3 in the paper's form on Cityscapes, 80k, 769x769. Not trained here.
# As the one of 512x1024. With align_corners mmseg crops 8n + 1 pixels, 769 for the paper's 768.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = ['mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-80k_cityscapes-769x769.py', '../_base_/models/mmseg_parts.py']

model = dict(
    pretrained=None,  # the base's is for ResNet
    backbone=_base_.pinas_b_d8,
    decode_head=dict(_base_.released_aspp, num_classes=19),  # the base's auxiliary head has align_corners too
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
