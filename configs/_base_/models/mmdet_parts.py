# What configs of mmdet's detectors put in place of their ResNet-50: pinas_b, frozen as mmdet freezes ResNet-50. The
# values are named by the configs (_base_.pinas_b); nothing else reads them.
pinas_b = dict(
    _delete_=True, type='pinas_zoo.PiNASBackbone', arch='333-3113-330011-021', frozen_stages=1, norm_eval=True
)
