"""Videos to databases: ``python -m dataset.prepare``, see ``dataset.preparation.prepare``."""

from dataset.preparation.prepare import main

if __name__ == "__main__":
    main()
