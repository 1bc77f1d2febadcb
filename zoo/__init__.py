"""Data sets, classifiers, the one training loop, and the store of victims and clean twins."""
