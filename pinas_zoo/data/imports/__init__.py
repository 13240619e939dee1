"""Annotations as people have them, written as files in COCO's format: `voc`, `labelme`, one mask per object."""
