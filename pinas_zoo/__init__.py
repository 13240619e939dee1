"""pinas_zoo: Pi-NAS supernets, and searched backbones for classification, detection and segmentation.

Importing the package registers the models with timm (`timm.create_model('pinas_a')`), lets mmcv work without compiled
operators (`mmcv_ext`), and loads only torch and timm.
"""

__version__ = '0.1.0'

from pinas_zoo import mmcv_ext
from pinas_zoo.weights import entry_points  # noqa: F401  registers the model names with timm

mmcv_ext.register()
