"""End-to-end tests: the built bundle on a real, disposable host."""
