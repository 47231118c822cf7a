"""What every package uses: paths, files on disk, caches, random draws, checks of what comes in, types, progress."""
