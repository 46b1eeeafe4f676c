"""COCO datasets: files to records, records to augmented samples."""
