"""Image sources, and the views that the methods, the linear stage and the ranking use.

A *source* knows where the pixels are (`sources`, `small_sets`, `specs`); a *view* data set makes training samples of
its images (`views`, `batched`, `supervised`).
"""

from pinas_zoo.data.batched import BatchedViews, augment_batch
from pinas_zoo.data.colour import COLOUR_NUMBERS, augment, colour_plan
from pinas_zoo.data.halves import HalvedView
from pinas_zoo.data.image_list import ListSource
from pinas_zoo.data.images import FileSource, FolderSource, find_images, read_picture
from pinas_zoo.data.shards import LostShardError, ShardSource
from pinas_zoo.data.small_sets import (
    FASHION_MNIST_CLASSES,
    ArraySource,
    DataSetInfo,
    DigitsSource,
    FashionMNISTSource,
    resolve_digits,
    resolve_fashion_mnist,
)
from pinas_zoo.data.sources import SOURCES, BrokenImageError, BrokenRateError, ImageReader, Source, open_source
from pinas_zoo.data.specs import SubsetSource
from pinas_zoo.data.supervised import SupervisedView, centre_view, finish_images, load_tensor, normalise
from pinas_zoo.data.views import FourViews, ViewRecipe, collate_views, draw_box, finish_views

__all__ = [
    'COLOUR_NUMBERS',
    'FASHION_MNIST_CLASSES',
    'SOURCES',
    'ArraySource',
    'BatchedViews',
    'BrokenImageError',
    'BrokenRateError',
    'DataSetInfo',
    'DigitsSource',
    'FashionMNISTSource',
    'FileSource',
    'FolderSource',
    'FourViews',
    'HalvedView',
    'ImageReader',
    'ListSource',
    'LostShardError',
    'ShardSource',
    'Source',
    'SubsetSource',
    'SupervisedView',
    'ViewRecipe',
    'augment',
    'augment_batch',
    'centre_view',
    'collate_views',
    'colour_plan',
    'draw_box',
    'find_images',
    'finish_images',
    'finish_views',
    'load_tensor',
    'normalise',
    'open_source',
    'read_picture',
    'resolve_digits',
    'resolve_fashion_mnist',
]
