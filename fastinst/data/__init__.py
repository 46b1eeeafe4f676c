"""Data sets: files to records, records to augmented samples."""
