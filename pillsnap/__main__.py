"""``python -m pillsnap``: the same command line as ``pillsnap``; MLproject entry points call this one."""

from pillsnap.cli.main import main

if __name__ == "__main__":
    main()
