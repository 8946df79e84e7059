"""Sound files, the toy drum world, the DATASET on disk and the batches read from it."""
