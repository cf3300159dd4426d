"""A look into a database: ``python -m dataset.show``, see ``dataset.preparation.show``."""

from dataset.preparation.show import main

if __name__ == "__main__":
    main()
