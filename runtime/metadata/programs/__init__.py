"""Generation settings in image files of other programs than AUTOMATIC1111, as request fields."""
