"""``python -m slidelens``: the program, by the interpreter that runs it."""

from slidelens.cli import main

if __name__ == "__main__":
    main()
