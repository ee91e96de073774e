"""The shape of the data: levels of a case, pixels of a slice, codes of a code map."""

LEVELS = 32  # slices of one case, from the mid-brain (0) to above the ventricles (31)


IMAGE_SIZE = 256  # pixels, height and width


CODE_SIZE = 64  # codes, height and width; the encoder halves the slice twice
