# Mask R-CNN 1x in mmdet's form with pinas_a (Pi-NAS-cls). Not trained here.
_base_ = './mask-rcnn_pinas-b_fpn-plain_1x_coco.py'

model = dict(backbone=dict(arch='301-3231-203213-032'))
