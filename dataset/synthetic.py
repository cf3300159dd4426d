"""The embedded footage: ``python -m dataset.synthetic``, see ``dataset.preparation.synthetic``."""

from dataset.preparation.synthetic import main

if __name__ == "__main__":
    main()
