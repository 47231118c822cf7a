"""What notebook 04 runs while it is read: a few rows on one stream, and scenes of the records adapted again."""
