"""What a config asks for: options, paths, cells, jobs and what they cost. Nothing here imports PyTorch at the start."""
