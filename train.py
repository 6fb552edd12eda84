"""Pre-train, self-train, distil, fine-tune or probe: ``python train.py model=mae data=digits``; ``--help`` lists the choices."""

from ssl_suite.cli import program
from ssl_suite.run import fit

main = program("train", fit)

if __name__ == "__main__":
    main()
