"""The shape of the data: what an OASIS slice and its code map look like."""

LEVELS = 32  # slices of one case, from the mid-brain (0) to above the ventricles (31)


IMAGE_SIZE = 256  # pixels, both ways


CODE_SIZE = 64  # both ways; the encoder halves the slice twice
