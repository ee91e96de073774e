"""The two training stages and the code maps between them."""
