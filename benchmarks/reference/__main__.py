"""`python -m benchmarks.reference`: keeps the table of results/README.md."""

from benchmarks.reference.reference import main

main()
