"""The emoji demo, whole: its world, its data streams, its trainer and its evaluation."""
