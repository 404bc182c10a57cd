"""`python -m hasfaas` is the shell."""

from hasfaas.sdk.cli import main

main()
