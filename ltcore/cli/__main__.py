"""``python -m ltcore.cli``, where the script is not on the path."""

from ltcore.cli import main

if __name__ == "__main__":
    main()
