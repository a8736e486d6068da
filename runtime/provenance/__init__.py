"""Machine-readable marks of generated pictures: XMP, an invisible watermark, signed C2PA manifests; safety checks."""
