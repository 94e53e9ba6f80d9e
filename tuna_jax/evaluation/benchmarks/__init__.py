"""Published benchmarks of images, videos and edits: their prompts, and the folder that each official scorer reads.

`registry.read` turns a benchmark's own prompt files into a `Benchmark`: every file that its scorer needs.
`generate.fill` generates them, and `validate.check` finds problems in a folder.
"""
