"""Everything that imports mmengine, mmcv, mmdet or mmseg; found through `pinas_zoo.registry`."""
