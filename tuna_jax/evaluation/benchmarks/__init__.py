"""Published benchmarks of pictures, clips and edits: what to draw, and the folder that each official scorer reads.

`table.read` turns a benchmark's own prompt files into a `Benchmark`: every file that its scorer wants. `drawing.fill`
makes them, `checking.check` says what is wrong with a folder.
"""
