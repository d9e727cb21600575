"""An example to copy: a ranking service on FastAPI that reads item vectors through sda-features."""
