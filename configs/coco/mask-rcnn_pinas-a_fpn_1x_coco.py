# Mask R-CNN in the paper's form, 1x, with pinas_a (Pi-NAS-cls). Not trained here.
_base_ = './mask-rcnn_pinas-b_fpn_1x_coco.py'

model = dict(backbone=dict(arch='301-3231-203213-032'))
