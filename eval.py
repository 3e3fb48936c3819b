"""Measure a model or a run: `python eval.py COMMAND --help`."""

from slms.main import evaluate as main

if __name__ == "__main__":
    main()
