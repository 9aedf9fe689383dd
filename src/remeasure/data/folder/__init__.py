"""Data sets without code: `source: folder/PATH`, in one of several layouts."""
