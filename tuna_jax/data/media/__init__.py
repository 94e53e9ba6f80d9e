"""Images and video: the only code that decodes, rotates, resizes and crops."""
