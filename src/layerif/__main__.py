"""`python -m layerif`, for launchers that start modules."""

from layerif.cli import main

if __name__ == "__main__":
    main()
