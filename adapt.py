"""Stream data through a trained model that goes on learning: ``python adapt.py model=tent checkpoint=RUN``."""

from ssl_suite.cli import program
from ssl_suite.deploy import deploy

main = program("adapt", deploy)

if __name__ == "__main__":
    main()
