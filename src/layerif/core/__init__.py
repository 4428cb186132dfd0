"""What every room uses: options, files, stages, progress, processes."""
