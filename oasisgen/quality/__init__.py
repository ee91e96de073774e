"""What a batch is worth: measures beside real slices, and the gate."""
