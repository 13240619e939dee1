"""Converts common annotation formats to files in COCO's format: `voc`, `labelme`, one mask per object."""
