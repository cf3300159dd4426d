"""Check databases: ``python -m dataset.verify``, see ``dataset.preparation.verify``."""

from dataset.preparation.verify import main

if __name__ == "__main__":
    main()
