"""Pure tensor functions: attention, windows, matching, neighbours, resizing of learned maps."""
