"""Detection and segmentation beyond a backbone; only ``datasets`` needs mmdet and mmseg."""
