"""Other ways to do the whole job with the same models, one file each; `__main__` times them."""
