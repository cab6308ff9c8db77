"""`python -m benchmarks.reference`: maintain the table in results/README.md."""

from benchmarks.reference.reference import main

main()
