"""The ``editkit`` command: ``main.main``, and one module per command."""
