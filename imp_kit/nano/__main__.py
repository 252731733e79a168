"""python -m imp_kit.nano train | evaluate: how the bundled checkpoint was made and is measured."""

from importlib.util import find_spec

if __name__ == "__main__":
    if find_spec("imp_kit.nano.training") is None:  # an installed wheel holds the checkpoint alone
        raise SystemExit("imp-kit: imp-nano is trained and measured in a clone of the repository, not from a wheel.")
    from imp_kit.nano.training.cli import main

    main()
