# Each recipe is one command; the scripts work without `just`, too.

# What a pull request must pass and needs no Docker
check:
    scripts/check

# The end-to-end suite on disposable hosts (needs Docker); arguments go to pytest
e2e *arguments:
    scripts/setup
    cargo build --release --locked
    target/venv/bin/python -m pytest tests/e2e {{ arguments }}

# Everything
test:
    scripts/test

# The main job on a disposable host, kept for a look around
demo:
    scripts/demo

# Write the golden files of examples/ again, to be reviewed as a diff
bless:
    cargo build --release --locked
    scripts/golden --bless

# Format Rust and Python
fmt:
    cargo fmt
    scripts/setup
    target/venv/bin/ruff format bundle-templates scripts/demo scripts/line-length tests
