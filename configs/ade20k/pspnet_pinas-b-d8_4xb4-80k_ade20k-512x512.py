# PSPNet in mmseg's form on ADE20K, 80k. Not trained here.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = ['mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py', '../_base_/models/mmseg_parts.py']

model = dict(pretrained=None, backbone=_base_.pinas_b_d8)  # the base's pretrained is for ResNet
auto_scale_lr = dict(enable=False, base_batch_size=16)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
